"""What to draw, so that sample i depends on (seed, i) alone.

A :class:`Drawing` is a model, a sampler, a seed and the labels; ``drawing.batches(start, stop, batch_size)`` draws the samples
with these indices. Its :meth:`~Drawing.identity` says everything the samples depend on, and nothing else: not the batch
size, not how many there are in all, not who draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from trueward.denoisers import ClassifierFreeGuidance, Denoiser
from trueward.fingerprints import model_fingerprint
from trueward.refinement import Cost, RefinedSampler
from trueward.samplers import Sampler


def parse_labels(text: str | None, num_classes: int | None) -> tuple[int, ...] | None:
    """Labels from text: ``3``, ``0,1,2`` (in turn), ``all`` (every class in turn), None for no class.

    Raises:
        ValueError: labels for an unconditional model, out of range, or not numbers.
    """
    if text is None:
        return None
    if num_classes is None:
        raise ValueError(f"This model knows no classes, so the class {text!r} cannot be asked of it.")
    if text.strip().lower() == "all":
        return tuple(range(num_classes))
    try:
        labels = tuple(int(piece) for piece in text.split(","))
    except ValueError:
        raise ValueError(f"A class is a number, several numbers like 0,1,2, or 'all', but got {text!r}.") from None
    for label in labels:
        if not 0 <= label < num_classes:
            raise ValueError(f"The class must lie in 0 ... {num_classes - 1}, got {label}.")
    return labels


def guided(denoiser: Denoiser, guidance: float | None, labels: tuple[int, ...] | None) -> Denoiser:
    """`denoiser` with classifier-free guidance of this scale (None or 1: unchanged).

    Raises:
        ValueError: guidance on an unconditional model, without a class to guide to, or not finite.
    """
    if guidance is None or guidance == 1.0:
        return denoiser
    if denoiser.num_classes is None:
        raise ValueError(f"This model knows no classes, so it cannot be guided (guidance={guidance:g}).")
    if labels is None:
        raise ValueError(f"guidance={guidance:g} needs a class to guide to: give a class as well.")
    if not 0.0 <= guidance < float("inf"):
        raise ValueError(f"guidance must be a finite number >= 0, got {guidance}.")
    return ClassifierFreeGuidance(denoiser, guidance)


class Batch(NamedTuple):
    """Samples `x` (rows, *shape) with their `indices` and `labels` (rows,) int64 (None without classes), and what they cost.

    `nfe` is the number of network evaluations per sample, everything included; `cost` says the rest; `nfe_kept` (rows,) are
    the evaluations on each sample's own path where these differ (rejection), else None.
    """

    x: Tensor
    indices: Tensor
    labels: Tensor | None
    nfe: float
    cost: Cost
    nfe_kept: Tensor | None = None


@dataclass(frozen=True)
class Drawing:
    """A model, a sampler and a seed; sample i follows.

    Args:
        denoiser: the model, on the device to use.
        sampler: from noise to data; a :class:`~trueward.refinement.RefinedSampler` brings its critic along.
        seed: any integer.
        labels: classes, taken in turn by index (sample i has ``labels[i % len(labels)]``); None for no class.
        guidance: scale of classifier-free guidance; None or 1 for none.
    """

    denoiser: Denoiser
    sampler: Sampler | RefinedSampler
    seed: int = 0
    labels: tuple[int, ...] | None = None
    guidance: float | None = None

    default_batch: ClassVar[int] = 64

    def __post_init__(self) -> None:
        if self.denoiser.shape is None:
            raise ValueError(
                "This model does not say the shape of its samples: give it one, shape=(channels, height, width)."
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}.")
        guided(self.denoiser, self.guidance, self.labels)

    def identity(self) -> dict[str, Any]:
        """Everything the samples depend on, JSON-able."""
        return {
            "model": model_fingerprint(self.denoiser),
            "shape": list(self.denoiser.shape or ()),
            "sampler": repr(self.sampler),
            "seed": self.seed,
            "labels": None if self.labels is None else list(self.labels),
            "guidance": self.guidance,
        }

    def labels_of(self, indices: Tensor) -> Tensor | None:
        """The labels of these samples."""
        return None if self.labels is None else torch.tensor(self.labels)[indices % len(self.labels)]

    @property
    def rejects(self) -> bool:
        """Are samples rejected, so that they take their own time each?"""
        return isinstance(self.sampler, RefinedSampler) and self.sampler.rejection is not None

    def prepare(self, batch_size: int = default_batch, progress: bool = False) -> None:
        """Measures what sampling needs and does not find stored: the constants of rejection."""
        if self.rejects:
            self.refined.calibration(self.model, batch_size=batch_size, progress=progress)

    @property
    def refined(self) -> RefinedSampler:
        """The refined sampler, whose constants are measured on the classes that are drawn."""
        assert isinstance(self.sampler, RefinedSampler)
        return self.sampler if self.sampler.labels is not None else replace(self.sampler, labels=self.labels)

    @property
    def model(self) -> Denoiser:
        """The model with the guidance to its classes."""
        return guided(self.denoiser, self.guidance, self.labels)

    def batches(
        self,
        start: int,
        stop: int,
        batch_size: int = default_batch,
        advance: Callable[[int], None] | None = None,
    ) -> Iterator[Batch]:
        """Draws the samples `start` ... `stop` - 1.

        With rejection all of them come in one batch, on which `batch_size` slots are kept busy: a slot whose sample is
        finished goes on with the next one.

        Args:
            advance: called with the number of samples that were finished since the last call.

        Raises:
            ValueError: if `batch_size` < 1, and whatever the sampler raises.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        model = self.model
        refined = self.refined if isinstance(self.sampler, RefinedSampler) else None
        at_once = stop - start if self.rejects else batch_size
        for first in range(start, stop, max(1, at_once)):
            indices = torch.arange(first, min(first + at_once, stop))
            labels = self.labels_of(indices)
            condition: dict[str, Any] = {} if labels is None else {"class_labels": labels}
            if refined is not None:
                drawn = refined.draw(model, indices, self.seed, batch_size=batch_size, advance=advance, **condition)
                kept = drawn.nfe_kept if refined.rejection is not None else None
                yield Batch(drawn.x, indices, labels, drawn.cost.nfe_per_sample, drawn.cost, kept)
                continue
            samples = self.sampler.sample(model, indices=indices, seed=self.seed, **condition)  # type: ignore[union-attr]
            spent = samples.nfe * len(indices)  # type: ignore[operator]
            if advance is not None:
                advance(len(indices))
            yield Batch(samples.x, indices, labels, samples.nfe, Cost(len(indices), spent, spent))  # type: ignore[arg-type]
