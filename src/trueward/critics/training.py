r"""Training a discriminator from a real and a generated set, and saying how far to trust it.

Every update takes as many real as generated samples, noised at times drawn uniformly in log-SNR, and minimises the binary
cross-entropy of the logit. A part of both sets is kept out: the weights that are kept are those with the smallest held-out
cross-entropy, and training stops when that has not fallen for `patience` evaluations. At large noise the two laws agree and
the best cross-entropy is log 2: low accuracy there is right, not under-training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trueward.critics.discriminator import Discriminator
from trueward.objectives.times import ImportanceTimes

BINS = 8


@dataclass(frozen=True)
class Calibration:
    """How a critic does on samples it was not trained on.

    Attributes:
        log_levels: (bins + 1,) edges of the bins of log(sigma / alpha).
        cross_entropy, accuracy: (bins,), nats and share, real and generated weighted alike.
        predicted, observed: (bins, 10): mean predicted probability of being real in ten equal steps of it, and the share
            that was real; nan where nothing fell. On the diagonal, the critic is calibrated.
        count: (bins, 10) samples behind them.
    """

    log_levels: list[float]
    cross_entropy: list[float]
    accuracy: list[float]
    predicted: list[list[float]]
    observed: list[list[float]]
    count: list[list[int]]

    @property
    def mean_cross_entropy(self) -> float:
        """Average over the noise levels, nats; log 2 = 0.693 for a critic that sees no difference."""
        known = [value for value in self.cross_entropy if not math.isnan(value)]
        return sum(known) / len(known)


@dataclass(frozen=True)
class CriticRecord:
    """What the training of a critic did; JSON-able by :meth:`to_json`."""

    steps: int
    best_step: int
    real: int
    generated: int
    held_out: float
    history: list[dict[str, float]]
    calibration: Calibration
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self)


def _noised(critic: Discriminator, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    times = ImportanceTimes()
    u = torch.rand(len(x), generator=generator, dtype=torch.float64)
    t = times.quantile(u, critic.schedule)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return critic.schedule.add_noise(x, t, noise), t


@torch.no_grad()
def calibration(
    critic: Discriminator,
    real: Tensor,
    generated: Tensor,
    *,
    real_labels: Tensor | None = None,
    generated_labels: Tensor | None = None,
    repeats: int | None = None,
    batch_size: int = 500,
    seed: int = 0,
) -> Calibration:
    """Cross-entropy, accuracy and reliability of a critic by noise level.

    Args:
        critic: in evaluation mode or not; its mode is left as it is.
        real, generated: (n, *shape), not seen in training.
        repeats: how often each sample is noised anew; default: until there are 2000 of each kind, at least four times.
    """
    device = next(critic.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    logits: list[Tensor] = []
    levels: list[Tensor] = []
    truths: list[Tensor] = []
    training, _ = critic.training, critic.eval()
    for x, labels, kind in ((real, real_labels, 1.0), (generated, generated_labels, 0.0)):
        for _ in range(max(4, -(-2000 // len(x))) if repeats is None else repeats):
            for rows in torch.arange(len(x)).split(batch_size):
                x_t, t = _noised(critic, x[rows], generator)
                condition: dict[str, Any] = {} if labels is None else {"class_labels": labels[rows].to(device)}
                logits.append(critic.log_ratio(x_t.to(device), t, **condition).cpu().double())
                levels.append(-0.5 * critic.schedule.log_snr(t))
                truths.append(torch.full((len(rows),), kind, dtype=torch.float64))
    critic.train(training)
    logit, level, truth = torch.cat(logits), torch.cat(levels), torch.cat(truths)
    edges = torch.linspace(-critic._highest / 2, -critic._lowest / 2, BINS + 1, dtype=torch.float64)
    which = torch.bucketize(level, edges[1:-1])
    loss = F.binary_cross_entropy_with_logits(logit, truth, reduction="none")
    hit = ((logit > 0) == (truth > 0.5)).double()
    p = torch.sigmoid(logit)
    tenth = (p * 10).long().clamp(max=9)

    def balanced(value: Tensor, inside: Tensor) -> float:
        """Mean over a bin in which real and generated count alike."""
        return sum(value[inside & (truth == c)].mean().item() for c in (0.0, 1.0)) / 2.0

    def table(value: Tensor | None) -> list[list[float]]:
        total = torch.zeros(BINS, 10, dtype=torch.float64)
        count = torch.zeros(BINS, 10, dtype=torch.float64)
        at = (which, tenth)
        total.index_put_(at, torch.ones_like(p) if value is None else value, accumulate=True)
        count.index_put_(at, torch.ones_like(p), accumulate=True)
        return (total if value is None else total / count).tolist()

    return Calibration(
        edges.tolist(),
        [balanced(loss, which == b) for b in range(BINS)],
        [balanced(hit, which == b) for b in range(BINS)],
        table(p),
        table(truth),
        [[int(c) for c in row] for row in table(None)],
    )


def train_critic(
    critic: Discriminator,
    real: Tensor,
    generated: Tensor,
    *,
    real_labels: Tensor | None = None,
    generated_labels: Tensor | None = None,
    steps: int = 5000,
    batch_size: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 1e-7,
    held_out: float = 0.1,
    evaluate_every: int = 250,
    patience: int = 8,
    seed: int = 0,
    progress: bool = False,
    callback: Callable[[int, float, float], None] | None = None,
) -> CriticRecord:
    """Trains `critic` in place and leaves it in evaluation mode, with the weights that did best on held-out samples.

    Args:
        critic: a :class:`Discriminator`; only parameters that require gradients are trained.
        real, generated: (n, *shape) tensors in the same value range; `generated` by the very sampler that is to be
            corrected.
        real_labels, generated_labels: (n,), for a conditional critic.
        steps, batch_size: updates, and samples per update (half of them real).
        lr, weight_decay: of Adam with decoupled decay; the rate falls linearly to 0 over `steps`.
        held_out: share of both sets kept out of training.
        evaluate_every, patience: check the held-out cross-entropy this often, stop after so many checks without a new best.
        seed: of times, noise, and the order of the data.
        callback: ``callback(step, training cross-entropy, held-out cross-entropy)`` at every check.

    Raises:
        ValueError: on shapes that differ, NaN, labels missing, or too few samples.
    """
    sets = _checked(critic, real, generated, real_labels, generated_labels, held_out, batch_size)
    (train_real, held_real), (train_generated, held_generated) = sets
    device = next(critic.parameters()).device
    parameters = [p for p in critic.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0 - k / steps)
    generator = torch.Generator().manual_seed(seed)
    half = batch_size // 2
    truth = torch.cat([torch.ones(half), torch.zeros(half)]).to(device)
    best, best_step, since, history = math.inf, 0, 0, []
    kept = {k: v.detach().clone() for k, v in critic.state_dict().items()}
    running, taken = 0.0, 0
    counter: Any = range(1, steps + 1)
    if progress:
        from tqdm.auto import tqdm

        counter = tqdm(counter, desc="critic", unit="step", leave=False)
    critic.train()
    step = 0
    for step in counter:
        picks = [torch.randint(len(s[0]), (half,), generator=generator) for s in (train_real, train_generated)]
        x = torch.cat([s[0][i] for s, i in zip((train_real, train_generated), picks)])
        condition: dict[str, Any] = {}
        if train_real[1] is not None:
            labels = [s[1][i] for s, i in zip((train_real, train_generated), picks)]  # type: ignore[index]
            condition = {"class_labels": torch.cat(labels).to(device)}
        x_t, t = _noised(critic, x, generator)
        logit = critic.log_ratio(x_t.to(device), t, **condition)
        loss = F.binary_cross_entropy_with_logits(logit.float(), truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
        running, taken = running + loss.item(), taken + 1
        if step % evaluate_every == 0 or step == steps:
            held = calibration(
                critic,
                held_real[0],
                held_generated[0],
                real_labels=held_real[1],
                generated_labels=held_generated[1],
                seed=seed + 1,
            ).mean_cross_entropy
            history.append({"step": step, "training": running / taken, "held_out": held})
            if callback is not None:
                callback(step, running / taken, held)
            running, taken = 0.0, 0
            if held < best:
                best, best_step, since = held, step, 0
                kept = {k: v.detach().clone() for k, v in critic.state_dict().items()}
            else:
                since += 1
                if since >= patience:
                    break
    critic.load_state_dict(kept)
    critic.requires_grad_(False).eval()
    final = calibration(
        critic,
        held_real[0],
        held_generated[0],
        real_labels=held_real[1],
        generated_labels=held_generated[1],
        seed=seed + 1,
    )
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "evaluate_every": evaluate_every,
        "patience": patience,
        "seed": seed,
    }
    return CriticRecord(step, best_step, len(real), len(generated), held_out, history, final, settings)


_Set = tuple[Tensor, Tensor | None]


def _checked(
    critic: Discriminator,
    real: Tensor,
    generated: Tensor,
    real_labels: Tensor | None,
    generated_labels: Tensor | None,
    held_out: float,
    batch_size: int,
) -> tuple[tuple[_Set, _Set], tuple[_Set, _Set]]:
    """(training, held-out) of the real and of the generated set."""
    if real.shape[1:] != generated.shape[1:]:
        raise ValueError(
            f"Real samples have shape {tuple(real.shape[1:])}, generated ones {tuple(generated.shape[1:])}."
        )
    if not 0.0 < held_out < 1.0:
        raise ValueError(f"held_out must lie between 0 and 1, got {held_out}.")
    if batch_size < 2 or batch_size % 2:
        raise ValueError(f"batch_size must be even (half real, half generated), got {batch_size}.")
    out = []
    for name, x, labels in (("real", real, real_labels), ("generated", generated, generated_labels)):
        if not bool(x.isfinite().all()):
            raise ValueError(f"The {name} samples hold NaN or infinity.")
        if critic.num_classes is not None and labels is None:
            raise ValueError(f"This critic is class-conditional: give {name}_labels.")
        if labels is not None and len(labels) != len(x):
            raise ValueError(f"{name}_labels has {len(labels)} entries for {len(x)} samples.")
        kept_out = max(1, round(held_out * len(x)))
        if len(x) - kept_out < 1:
            raise ValueError(f"{len(x)} {name} samples are too few to train on and hold out {held_out:g} of.")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        parts = (order[kept_out:], order[:kept_out])
        labels = None if critic.num_classes is None else labels
        out.append(tuple((x[i], None if labels is None else labels[i]) for i in parts))
    return out[0], out[1]  # type: ignore[return-value]
