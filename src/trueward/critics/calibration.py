"""How far to trust a critic: cross-entropy, accuracy and reliability by noise level, on samples it was not trained on.

At large noise the two laws agree and the best cross-entropy is log 2: low accuracy there is right, not under-training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trueward import processes
from trueward.critics.critic import Critic
from trueward.critics.examples import Part, as_examples, noised

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

    @property
    def levels(self) -> list[float]:
        """(bins,) sigma / alpha in the middle of every bin."""
        return [math.exp((a + b) / 2.0) for a, b in zip(self.log_levels, self.log_levels[1:])]


@torch.no_grad()
def calibration(
    critic: Critic,
    real: Any,
    generated: Any,
    *,
    real_labels: Tensor | None = None,
    generated_labels: Tensor | None = None,
    repeats: int | None = None,
    batch_size: int = 500,
    seed: int = 0,
) -> Calibration:
    """Cross-entropy, accuracy and reliability of a critic by noise level; several processes share the work.

    Args:
        critic: in evaluation mode or not; its mode is left as it is.
        real, generated: (n, *shape) tensors or data sets, not seen in training.
        repeats: how often each sample is noised anew; default: until there are 2000 of each kind, at least four times.
    """
    sets = []
    for name, x, labels in (("real", real, real_labels), ("generated", generated, generated_labels)):
        examples = as_examples(name, x, labels, critic)
        sets.append(Part(examples, torch.arange(len(examples))))
    return measured(critic, *sets, repeats=repeats, batch_size=batch_size, seed=seed)


@torch.no_grad()
def measured(
    critic: Critic, real: Part, generated: Part, *, repeats: int | None, batch_size: int, seed: int
) -> Calibration:
    """:func:`calibration` on parts of sets."""
    logit, level, truth = judged(critic, real, generated, repeats=repeats, batch_size=batch_size, seed=seed)
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


@torch.no_grad()
def judged(
    critic: Critic, real: Part, generated: Part, *, repeats: int | None, batch_size: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(logit, log(sigma / alpha), 1 for real and 0 for generated) of noised rows, float64, the same in every process."""
    parameter = next(critic.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    generator = torch.Generator().manual_seed(seed)
    rank, world = processes.here()
    logits: list[Tensor] = []
    levels: list[Tensor] = []
    truths: list[Tensor] = []
    training, _ = critic.training, critic.eval()
    for part, kind in ((real, 1.0), (generated, 0.0)):
        times = max(4, -(-2000 // len(part))) if repeats is None else repeats
        for positions in torch.arange(len(part)).repeat(times).split(batch_size):
            x, labels = part.read(positions)
            x_t, t = noised(critic, x, generator)
            logit = torch.zeros(len(x), dtype=torch.float64)
            if len(logits) % world == rank:
                condition: dict[str, Any] = {} if labels is None else {"class_labels": labels.to(device)}
                logit = critic.log_ratio(x_t.to(device), t, **condition).cpu().double()
            logits.append(logit)
            levels.append(-0.5 * critic.schedule.log_snr(t))
            truths.append(torch.full((len(x),), kind, dtype=torch.float64))
    critic.train(training)
    return processes.sum_over_processes(torch.cat(logits)), torch.cat(levels), torch.cat(truths)
