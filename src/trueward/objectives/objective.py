r"""What training minimises: ``objective(denoiser, batch, generator) -> (batch,)`` losses, one per sample.

The contract, shared by every objective:

* `batch` is a dict: ``x`` (batch, *shape) and, where they exist, ``class_labels`` (batch,) int64 and further conditions row
  by row. Two entries say which rows of a larger batch these are, when it was split over processes or accumulated in pieces:
  ``rows`` (batch,) int64 and ``total``, its size. Without them the batch is the whole.
* All randomness comes from `generator`. Every row draws from a stream of its own, keyed by one number of the generator and
  its place in the whole batch, so the loss of a row does not depend on how the batch was split. What belongs to the batch
  as a whole (a truncation time drawn once per batch) comes from the generator itself, which starts alike in every piece.
* Nothing is averaged, and nothing is detached but what the method says is a constant.

A noising of a batch, which is where every objective of this family starts, is :func:`add_noise`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trueward.denoisers import Denoiser
from trueward.noise import Noise
from trueward.objectives.times import TimeSampler

Batch = Mapping[str, Any]


class Objective(ABC):
    """What training minimises; see the module for the contract."""

    citation: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __call__(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of every sample, (batch,) float32 (float64 for float64 data)."""

    def to_config(self) -> dict[str, Any]:
        """What a run's record says of it, JSON-able."""
        return {"objective": type(self).__name__}


@dataclass(frozen=True, eq=False)
class Noisy:
    """A batch with noise: x_t = alpha x_0 + sigma eps.

    Attributes:
        x_0, eps, x_t: (batch, *shape).
        t: (batch,) float64.
        density: (batch,) float64, p(t) of the time sampler.
        condition: what the denoiser is conditioned on.
        noise: the rows' own streams; draws 0 and above are free for the objective (eps and t come from others).
    """

    x_0: Tensor
    eps: Tensor
    x_t: Tensor
    t: Tensor
    density: Tensor
    condition: dict[str, Any]
    noise: Noise

    def __len__(self) -> int:
        return self.x_0.shape[0]


_EPS, _TIME, _DROP = (2**30, 2**30 + 1, 2**30 + 2)  # numbers of draws, far from those an objective would use


def row_noise(batch: Batch, generator: torch.Generator) -> Noise:
    """A stream of random numbers for every row, which does not depend on how the batch was split."""
    x = batch["x"]
    key = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    rows = batch.get("rows")
    return Noise.rows(key, x.shape[0] if rows is None else rows, device=x.device)


def uniform_numbers(noise: Noise, total: int | None, generator: torch.Generator, stratified: bool) -> Tensor:
    """One number in (0, 1) per row, (batch,) float64: independent, or spread evenly over the `total` rows of the batch."""
    if not stratified:
        return noise.uniform(_TIME)
    start = torch.rand((), generator=generator, dtype=torch.float64, device=generator.device).to(noise.indices.device)
    total = len(noise) if total is None else int(total)
    # the open interval: a time sampler may send 0 or 1 to infinity before it cuts
    return ((noise.indices / total + start) % 1.0).clamp(1e-12, 1.0 - 1e-12)


def dropped_labels(labels: Tensor, probability: float, num_classes: int, noise: Noise) -> Tensor:
    """The labels with each replaced by `num_classes`, "no class", with this probability (Ho and Salimans 2022)."""
    if probability == 0.0:
        return labels
    return torch.where(noise.uniform(_DROP) < probability, num_classes, labels)


def add_noise(
    denoiser: Denoiser, batch: Batch, generator: torch.Generator, times: TimeSampler, label_dropout: float = 0.0
) -> Noisy:
    """Draws a time and a noise for every row.

    Args:
        denoiser: says the schedule and the number of classes.
        batch: see the module.
        generator: where the randomness comes from.
        times: distribution of t.
        label_dropout: probability of hiding a row's class, where the denoiser knows classes.

    Raises:
        ValueError: if the denoiser is conditional and the batch has no labels.
    """
    x_0 = batch["x"]
    schedule = denoiser.schedule
    noise = row_noise(batch, generator)
    t = times.quantile(uniform_numbers(noise, batch.get("total"), generator, times.stratified), schedule)
    eps = noise.normal(_EPS, x_0.shape[1:], x_0.dtype, x_0.device)
    condition = {k: v for k, v in batch.items() if k not in ("x", "rows", "total", "class_labels") and v is not None}
    if denoiser.num_classes is not None:
        labels = batch.get("class_labels")
        if labels is None:
            raise ValueError(
                f"The denoiser is conditioned on {denoiser.num_classes} classes, but the batch has no class_labels."
            )
        condition["class_labels"] = dropped_labels(labels, label_dropout, denoiser.num_classes, noise)
    return Noisy(x_0, eps, schedule.add_noise(x_0, t, eps), t, times.density(t, schedule), condition, noise)
