"""What to draw, so that sample i depends on (seed, i) alone.

A :class:`Drawing` is a model, a sampler, a seed and the labels; ``drawing.batches(start, stop, batch_size)`` draws the samples
with these indices. Its :meth:`~Drawing.identity` says everything the samples depend on, and nothing else: not the batch
size, not how many there are in all, not who draws them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from trueward.denoisers import ClassifierFreeGuidance, Denoiser
from trueward.samplers import Sampler


def model_fingerprint(denoiser: Denoiser) -> str:
    """A short hash of a model's weights and schedule: two models with the same hash draw the same samples."""
    digest = hashlib.sha256(f"{type(denoiser).__name__} {denoiser.schedule.fingerprint}".encode())
    for name, value in sorted(denoiser.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


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
    """Samples `x` (rows, *shape) with their `indices` and `labels` (rows,) int64 (None without classes), and what they cost."""

    x: Tensor
    indices: Tensor
    labels: Tensor | None
    nfe: int


@dataclass(frozen=True)
class Drawing:
    """A model, a sampler and a seed; sample i follows.

    Args:
        denoiser: the model, on the device to use.
        sampler: from noise to data.
        seed: any integer.
        labels: classes, taken in turn by index (sample i has ``labels[i % len(labels)]``); None for no class.
        guidance: scale of classifier-free guidance; None or 1 for none.
    """

    denoiser: Denoiser
    sampler: Sampler
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

    def batches(self, start: int, stop: int, batch_size: int = default_batch) -> Iterator[Batch]:
        """Draws the samples `start` ... `stop` - 1.

        Raises:
            ValueError: if `batch_size` < 1, and whatever the sampler raises.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        model = guided(self.denoiser, self.guidance, self.labels)
        for first in range(start, stop, batch_size):
            indices = torch.arange(first, min(first + batch_size, stop))
            labels = self.labels_of(indices)
            condition: dict[str, Any] = {} if labels is None else {"class_labels": labels}
            samples = self.sampler.sample(model, indices=indices, seed=self.seed, **condition)
            yield Batch(samples.x, indices, labels, samples.nfe)
