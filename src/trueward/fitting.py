r"""A critic for a trained model, from nothing: generate, train, measure, store.

The generated samples come from the very sampler that is to be corrected and go through the storage of the real data: the
same number of grey levels. A critic finds any other difference first and learns nothing else.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueward import processes
from trueward.critics.discriminator import Discriminator
from trueward.critics.features import FeatureCritic
from trueward.critics.stored import save_critic
from trueward.critics.training import CriticRecord, train_critic
from trueward.data.dataset import Dataset
from trueward.data.rows import Quantised
from trueward.denoisers import Denoiser
from trueward.drawing import Drawing
from trueward.naming import check_name
from trueward.networks import MLP, HalfUNet, LogitHead
from trueward.schedules import Schedule, VPLinear
from trueward.shards import Progress, ShardFolder, from_stored, sample_to_folder, wait_until_complete

NETWORKS = ("auto", "half-unet", "mlp", "features")


def critic_for(
    denoiser: Denoiser,
    data: Dataset,
    network: str = "auto",
    *,
    conditional: bool = False,
    width: int | None = None,
    blocks: int | None = None,
    dropout: float | None = None,
    feature_layer: str = "auto",
    seed: int = 0,
) -> Discriminator | FeatureCritic:
    """An untrained critic that fits a model and its data, on the model's device.

    Args:
        denoiser: the model.
        data: the real samples.
        network: half-unet (images), mlp (anything else), features (a shallow head on the frozen model), or auto: one of
            the first two by the shape.
        conditional: judge a sample as one of its class.
        width, blocks: size of the network or head.
        dropout: default 0.2 for fewer than 20000 real samples, where a critic soon memorises, else 0.1.
        feature_layer: for features, see :mod:`trueward.covariance.trunk`.
        seed: of the initial weights.

    Raises:
        ValueError: an unknown network, one that does not fit the shape, classes the model does not know.
    """
    check_name("network of a critic", network, NETWORKS)
    shape = data.shape
    classes = None
    if conditional:
        classes = denoiser.num_classes
        if classes is None or data.num_classes is None:
            lacking = "model knows" if classes is None else "data have"
            raise ValueError(f"A conditional critic needs classes, but the {lacking} none.")
        if data.num_classes > classes:
            raise ValueError(f"The data have {data.num_classes} classes, the model knows {classes}.")
    if network == "auto":
        network = "half-unet" if len(shape) == 3 else "mlp"
    if network == "half-unet" and len(shape) != 3:
        raise ValueError(f"half-unet takes images (channels, height, width), but the samples have shape {shape}.")
    dropout = (0.2 if len(data) < 20_000 else 0.1) if dropout is None else dropout
    chosen: dict[str, Any] = {name: v for name, v in (("width", width), ("blocks", blocks)) if v is not None}
    with torch.random.fork_rng(devices=[denoiser.device] if denoiser.device.type == "cuda" else []):
        torch.manual_seed(seed)
        if network == "features":
            return FeatureCritic(denoiser, num_classes=classes, feature_layer=feature_layer, dropout=dropout, **chosen)
        if network == "half-unet":
            trunk: nn.Module = HalfUNet(**{**_picture_trunk(shape), **chosen}, num_classes=classes, dropout=dropout)
        else:
            depth = {} if blocks is None else {"depth": blocks}
            dim = shape[0] if len(shape) == 1 else list(shape)
            trunk = MLP(dim, width or 128, **depth, num_classes=classes, dropout=dropout)
        return Discriminator(
            LogitHead(trunk, dropout=dropout),
            _levels_of(denoiser.schedule),
            sigma_data=_spread(data),
            shape=shape,
            num_classes=classes,
        ).to(denoiser.device)


def _picture_trunk(shape: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of the trunk for images: halved until about 8 pixels are left, attention on the smallest map."""
    channels, height, breadth = shape
    stride = 2 if min(height, breadth) > 16 else 1
    heights = [height // stride]
    while max(heights[-1], heights[-1] * breadth // height) > 8 and len(heights) < 5:
        heights.append(-(-heights[-1] // 2))
    if len(heights) == 1 and heights[0] > 4:
        heights.append(-(-heights[0] // 2))
    size = height if height == breadth else [height, breadth]
    multipliers = [1, 2, 4, 4, 4][: len(heights)]
    return {"channels": channels, "size": size, "multipliers": multipliers, "stride": stride, "attention": heights[-1:]}


def _levels_of(schedule: Schedule) -> Schedule:
    """The model's own process, unless it reaches data without noise, where no ratio can be learnt."""
    return schedule if bool(schedule.log_snr(schedule.t_min).isfinite()) else VPLinear(t_min=1e-5)


def _spread(data: Dataset, most: int = 4096) -> float:
    rows = torch.linspace(0, len(data) - 1, min(most, len(data)), dtype=torch.float64).long()
    return float(f"{float(data.batch(rows)['x'].double().std(correction=0)) or 1.0:.3g}")


# --- generated samples ----------------------------------------------------------------------------------------------------


def generated_set(source: str | Path | ShardFolder, data: Dataset) -> Dataset:
    """Generated samples as a data set that has been through the storage of the real ones.

    Args:
        source: a folder of shards made by `trueward sample`, or whatever :func:`trueward.data.load_data` reads.
        data: the real samples, whose range and number of grey levels are taken.

    Raises:
        ValueError: if there are none, sampling has not finished, or they have another shape.
    """
    from trueward.data import load_data

    if not isinstance(source, ShardFolder) and ShardFolder.is_one(source):
        source = ShardFolder(Path(source))
    if isinstance(source, ShardFolder):
        pieces, labels = [], []
        for shard in source:
            pieces.append(_levelled(from_stored(shard["samples"], source.data_range), data))
            labels.append(shard.get("labels"))
        x = torch.cat(pieces)
        known = None if any(part is None for part in labels) else torch.cat(labels)  # type: ignore[arg-type]
    else:
        found = load_data(str(source), split="all", data_range=data.data_range if data.data_range else "auto")
        x, known = _levelled(found.x, data), found.labels
    if tuple(x.shape[1:]) != data.shape:
        raise ValueError(f"The generated samples have shape {tuple(x.shape[1:])}, the real ones {data.shape}.")
    if known is not None and bool((known < 0).any()):
        known = None
    classes = None if known is None or data.num_classes is None else max(data.num_classes, int(known.max()) + 1)
    if x.dtype == torch.uint8:
        assert data.levels is not None
        assert data.data_range is not None
        return Dataset(
            Quantised(x, data.levels, data.data_range), known, data_range=data.data_range, num_classes=classes,
            name="generated",
        )  # fmt: skip
    return Dataset(x, known, num_classes=classes, name="generated", levels=data.levels)


def _levelled(x: Tensor, data: Dataset) -> Tensor:
    """Samples in data units rounded to the grey levels of `data`: their numbers (uint8) for up to 256 of them."""
    if data.levels is None or data.data_range is None:
        return x
    low, high = data.data_range
    codes = ((x - low) * ((data.levels - 1) / (high - low))).round().clamp(0, data.levels - 1)
    if data.levels <= 256:
        return codes.to(torch.uint8)
    return codes * ((high - low) / (data.levels - 1)) + low


def storage_of(data: Dataset) -> str:
    """How generated samples are kept so that nothing but the rounding of the real ones is lost."""
    return "uint8" if data.levels == 256 and data.data_range is not None else "float32"


def fit_critic(
    denoiser: Denoiser,
    data: Dataset,
    folder: str | Path,
    *,
    drawing: Drawing | None = None,
    n: int | None = None,
    generated: str | Path | None = None,
    network: str = "auto",
    conditional: bool = False,
    width: int | None = None,
    blocks: int | None = None,
    dropout: float | None = None,
    feature_layer: str = "auto",
    updates: int = 3000,
    batch_size: int = 256,
    lr: float = 1e-3,
    evaluate_every: int | None = None,
    patience: int = 8,
    seed: int = 0,
    sample_batch: int = 64,
    facts: Mapping[str, Any] | None = None,
    progress: bool = False,
    on_sample: Callable[[Progress], None] | None = None,
    on_check: Callable[[int, float, float], None] | None = None,
) -> tuple[Discriminator | FeatureCritic, CriticRecord, Dataset]:
    """Generates, trains, measures and stores a critic of a model in ``folder/critic``.

    Interrupted, it continues: generation at its last shard, training at its last check. Under a launcher with several
    processes these share both.

    Args:
        denoiser: the model, which is not changed.
        data: real samples.
        folder: of the model, or another one.
        drawing: how to generate: model, sampler, seed, classes. Take a seed under which nothing is drawn later: a critic
            judges the samples it has learnt from too harshly. Not needed with `generated`.
        n: how many samples to generate; default as many as there are real ones, at most 10000.
        generated: instead, samples that are there: a folder of shards, a .npz file, ...
        network, conditional, width, blocks, dropout, feature_layer: see :func:`critic_for`.
        updates, batch_size, lr, evaluate_every, patience: see :func:`train_critic` (`updates` are its steps).
        seed: of the weights and the training.
        sample_batch: samples in one call of the model while generating.
        facts: further entries of ``critic.json``, e.g. the sampler as text.
        progress: show a bar while training.
        on_sample, on_check: callbacks of :func:`~trueward.shards.sample_to_folder` and :func:`train_critic`.

    Returns:
        the critic, what training measured, and the generated set.

    Raises:
        ValueError: whatever is wrong with data, model, sampler or settings, in one sentence.
    """
    if denoiser.shape is not None and data.shape != denoiser.shape:
        raise ValueError(f"The data {data.name!r} have shape {data.shape}, the model makes {denoiser.shape}.")
    if not isinstance(updates, int) or isinstance(updates, bool) or updates < 1:
        raise ValueError(f"updates must be a whole number >= 1, got {updates!r}.")
    if n is not None and generated is not None:
        raise ValueError(
            f"n={n} says how many samples to generate, but those of {generated} are to be taken: give one."
        )
    critic = critic_for(
        denoiser, data, network, conditional=conditional, width=width, blocks=blocks, dropout=dropout,
        feature_layer=feature_layer, seed=seed,
    )  # fmt: skip
    place = Path(folder) / "critic"
    about: dict[str, Any] = {"data": data.to_config(), **(facts or {})}
    if generated is not None:
        fakes = generated_set(generated, data)
        about["generated"] = {"from": str(generated), "n": len(fakes)}
    else:
        if drawing is None:
            raise ValueError("Give a drawing to generate with, or generated samples.")
        count = min(len(data), 10_000) if n is None else n
        target = place / "generated"
        made = sample_to_folder(
            drawing, count, target, batch_size=sample_batch, dtype=storage_of(data), callback=on_sample
        )
        made = wait_until_complete(target, count) if not made["complete"] else made
        fakes = generated_set(ShardFolder(target), data)
        about["generated"] = {"from": "generated", "n": count, "nfe": made["nfe"], **drawing.identity()}
    _warn(data, fakes)
    began = time.perf_counter()
    processes.join()
    record = train_critic(
        critic,
        data,
        fakes,
        steps=updates,
        batch_size=batch_size,
        lr=lr,
        evaluate_every=max(1, min(250, updates // 10)) if evaluate_every is None else evaluate_every,
        patience=patience,
        seed=seed,
        progress=progress,
        callback=on_check,
        checkpoint=place / "training.part.pt",
    )
    about["seconds_of_training"] = round(time.perf_counter() - began, 1)
    if processes.here()[0] == 0:
        save_critic(critic, folder, denoiser, {**about, "training": record.to_json()})
        (place / "training.part.pt").unlink(missing_ok=True)
    return critic, record, fakes


def _warn(real: Dataset, generated: Dataset) -> None:
    """Says what often is a mistake, and trains all the same."""
    if len(generated) < 0.1 * len(real):
        warnings.warn(
            f"{len(generated)} generated samples for {len(real)} real ones: a critic learns better from as many.",
            stacklevel=3,
        )
    a, b = _spread(real), _spread(generated)
    if max(a, b) > 2.0 * min(a, b):
        warnings.warn(
            f"The real samples have standard deviation {a:g}, the generated ones {b:g}: do both have one range of values?",
            stacklevel=3,
        )
