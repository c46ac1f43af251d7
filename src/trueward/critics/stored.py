r"""Critics on disk, beside the model they judge:

    FOLDER/critic/critic.json             the network, the model and the sampler it was trained for, what training measured
    FOLDER/critic/critic.safetensors      its weights
    FOLDER/critic/generated/              the samples it was trained on
    FOLDER/critic/rejection-*.safetensors the log ratios behind the constants of rejection, one file per chain
    FOLDER/critic/report.html             how far to trust it

A critic is the ratio of the data to the samples of *one* model by *one* sampler. :func:`with_critic` refuses one of another
model, schedule, shape or number of classes; another sampler of the same model is let through with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trueward import records
from trueward.critics.critic import Critic
from trueward.critics.description import described_in
from trueward.critics.discriminator import Discriminator
from trueward.critics.extractor import KIND as EXTRACTOR_KIND
from trueward.critics.extractor import ExtractorCritic
from trueward.critics.features import FORMAT, FeatureCritic
from trueward.denoisers import Denoiser
from trueward.fingerprints import model_fingerprint, weights_fingerprint
from trueward.loading import read_weights, set_weights
from trueward.networks import network

KINDS = ("trueward-critic", "trueward-feature-critic", EXTRACTOR_KIND)

StoredCritic = Discriminator | FeatureCritic | ExtractorCritic


class CriticOfAnotherSampler(UserWarning):
    """The critic was trained on the samples of another sampler than the one it is asked to correct."""


def critic_folder(folder: str | Path) -> Path:
    """Where the critic of a model is: ``FOLDER/critic``, or the folder itself if it holds a critic."""
    folder = Path(folder)
    return folder if (folder / "critic.json").is_file() else folder / "critic"


def critic_fingerprint(critic: Critic) -> str:
    """A short hash of a critic's weights and schedule (and of the model, for one on a model's features).

    Of a class of your own the plain attributes count too: numbers, texts and tensors that are no weights.
    """
    weights = dict(critic.state_dict())
    title = f"{type(critic).__name__} {critic.schedule.fingerprint} {critic.num_classes}"
    if isinstance(critic, FeatureCritic):
        title += f" {critic.feature_layer} {model_fingerprint(critic.denoiser)}"
    if not isinstance(critic, Discriminator | FeatureCritic | ExtractorCritic):
        for name, value in sorted(vars(critic).items()):
            if isinstance(value, Tensor):
                weights[f"attribute {name}"] = value
            elif isinstance(value, int | float | str) and name != "training":
                title += f" {name}={value!r}"
    return weights_fingerprint(title, weights)


def save_critic(
    critic: StoredCritic,
    folder: str | Path,
    denoiser: Denoiser,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a critic beside the model in `folder`, with the model's fingerprint.

    Args:
        facts: put into ``critic.json`` as they are, e.g. the sampler as text and the record of the training.

    Returns:
        the critic's own folder.
    """
    place = Path(folder) / "critic"
    known = {
        "model": model_fingerprint(denoiser),
        "model_schedule": denoiser.schedule.fingerprint,
        "model_classes": denoiser.num_classes,
        **(facts or {}),
        **records.circumstances(),
    }
    critic.save(place, known)
    return place


def read_facts(folder: str | Path) -> dict[str, Any]:
    """What ``critic.json`` says.

    Raises:
        ValueError: if there is no critic, or this version does not read it.
    """
    path = critic_folder(folder) / "critic.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no critic: train one with `trueward fit-critic`, or say where it is with --critic FOLDER."
        )
    facts = records.read_json(path)
    if not isinstance(facts, dict) or facts.get("kind") not in KINDS or facts.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a critic that this version reads.")
    return facts


def load_critic(
    folder: str | Path, denoiser: Denoiser | None = None, *, extractor: nn.Module | None = None
) -> StoredCritic:
    """The critic in a folder as it is, without asking whether it fits; its description is the attribute ``record``.

    Args:
        folder: of the critic or of its model.
        denoiser: the model, which a critic on its features needs.
        extractor: for a critic on an extractor whose class is not registered: a module of that class.

    Raises:
        ValueError: if there is none, or it is damaged, or the model is needed and not given.
    """
    facts, place = read_facts(folder), critic_folder(folder)
    if facts["kind"] == "trueward-critic":
        critic: StoredCritic = Discriminator.load(place)
    elif facts["kind"] == EXTRACTOR_KIND:
        critic = ExtractorCritic.load(place, extractor)
    elif denoiser is None:
        raise ValueError(f"The critic in {place} reads the features of its model: load it with that model.")
    else:
        with described_in(place / "critic.json"):
            head = network(facts["network"])
            critic = FeatureCritic(
                denoiser, head, num_classes=facts["num_classes"], feature_layer=facts["feature_layer"]
            )
        weights = place / "critic.safetensors"
        set_weights(head, read_weights(weights), str(weights))
        critic.requires_grad_(False).eval()
    critic.record, critic.folder = facts, place  # type: ignore[assignment]
    return critic if denoiser is None else critic.to(denoiser.device)


def with_critic(
    denoiser: Denoiser,
    folder: str | Path | None = None,
    *,
    sampler: str | None = None,
    extractor: nn.Module | None = None,
) -> StoredCritic:
    """The critic that was trained for a model and stored beside it, on the model's device.

    Args:
        denoiser: the model, as it was when the critic was trained.
        folder: of the critic or the model; default: where the model was loaded from.
        sampler: the sampler that is to be corrected, as text; another one than the critic's is warned of.
        extractor: see :func:`load_critic`.

    Raises:
        ValueError: no folder, no critic there, or one of another model, schedule, shape or number of classes.
    """
    folder = getattr(denoiser, "folder", None) if folder is None else folder
    if folder is None:
        raise ValueError("Say where the critic is stored: folder= (the model was not loaded from one).")
    facts = read_facts(folder)
    place = critic_folder(folder)
    with described_in(place / "critic.json"):
        shape = None if facts.get("shape") is None else tuple(facts["shape"])
    if shape is not None and denoiser.shape is not None and shape != denoiser.shape:
        raise ValueError(f"The critic in {place} takes samples of shape {shape}, the model makes {denoiser.shape}.")
    for name, found in (("num_classes", facts.get("num_classes")), ("model_classes", facts.get("model_classes"))):
        if found is not None and found != denoiser.num_classes:
            whose = "knows" if name == "num_classes" else "was trained for a model of"
            raise ValueError(f"The critic in {place} {whose} {found} classes, the model knows {denoiser.num_classes}.")
    if facts.get("model_schedule") not in (None, denoiser.schedule.fingerprint):
        raise ValueError(
            f"The critic in {place} was trained for another schedule than the model's; train it again with "
            "`trueward fit-critic`."
        )
    if facts.get("model") not in (None, model_fingerprint(denoiser)):
        raise ValueError(
            f"The critic in {place} was trained for another model (other weights); train it again with "
            "`trueward fit-critic`."
        )
    critic = load_critic(folder, denoiser, extractor=extractor)
    if sampler is not None:
        warn_of_another_sampler(critic, sampler)
    return critic


def warn_of_another_sampler(critic: Critic, sampler: str) -> None:
    """Warns if a stored critic was trained on the samples of another sampler than the one named."""
    facts = getattr(critic, "record", None)
    trained = facts.get("sampler") if isinstance(facts, dict) else None
    if trained not in (None, sampler):
        warnings.warn(
            f"The critic was trained on samples of {trained}; for {sampler} its ratio is an approximation.",
            CriticOfAnotherSampler,
            stacklevel=3,
        )
