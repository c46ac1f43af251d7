"""A dataset: samples of one shape in a fixed order, with labels if there are any and the range their values lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from trueward.data.rows import Dense, Rows

Indices = Sequence[int] | np.ndarray | Tensor | slice


class Dataset(TorchDataset[dict[str, Tensor]]):
    """Samples x_0, their labels and what is known of their values; also a ``torch.utils.data.Dataset``.

    Args:
        x: (n, *shape) tensor of values (kept as float32), or :class:`Rows` that are read when asked for.
        labels: (n,) whole numbers in 0 ... num_classes-1, or None.
        data_range: (low, high), which all values lie in, or None where no range is known.
        num_classes: number of classes; default: as many as `class_names`, else the largest label + 1.
        name: what the data are called in reports.
        levels: number of grey levels if the values are quantised evenly over `data_range` (256 for uint8 images); bits per
            dimension need it. None for continuous values.
        class_names: name of each class.
        origin: JSON-able arguments with which ``load_data`` makes this dataset again, or None.

    Raises:
        ValueError: values that are not finite or outside `data_range`; labels of another length or out of range.
    """

    def __init__(
        self,
        x: Tensor | Rows,
        labels: Sequence[int] | np.ndarray | Tensor | None = None,
        *,
        data_range: tuple[float, float] | None = None,
        num_classes: int | None = None,
        name: str = "data",
        levels: int | None = None,
        class_names: Sequence[str] | None = None,
        origin: dict[str, Any] | None = None,
    ) -> None:
        self.data_range = check_range(data_range)
        if isinstance(x, Tensor):
            check_values(x, self.data_range)
        self.rows = Dense(x) if isinstance(x, Tensor) else x
        if len(self.rows) == 0:
            raise ValueError(f"The data {name!r} are empty.")
        self.levels = self.rows.levels if levels is None else levels
        self.name = name
        self.class_names = None if class_names is None else [str(c) for c in class_names]
        self.origin = origin
        if num_classes is None and self.class_names is not None:
            num_classes = len(self.class_names)
        self.labels, self.num_classes = check_labels(labels, len(self.rows), num_classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.rows.shape

    @property
    def x(self) -> Tensor:
        """All samples (n, *shape) float32; reads and decodes what is not in memory."""
        return self.rows.x if isinstance(self.rows, Dense) else self.rows.read(torch.arange(len(self)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Sample `i` as ``{"x": (*shape)}``, with ``"class_labels": ()`` if there are labels."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"Index {i} is outside the {len(self)} samples of {self.name!r}.")
        return {key: value[0] for key, value in self.batch([i % len(self)]).items()}

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        """The samples `indices` as ``{"x": (batch, *shape) float32}``, with ``"class_labels": (batch,) int64`` if there are labels."""
        picked = self._indices(indices)
        found = {"x": self.rows.read(picked)}
        if self.labels is not None:
            found["class_labels"] = self.labels.index_select(0, picked)
        return found

    def _indices(self, indices: Indices) -> Tensor:
        if isinstance(indices, slice):
            return torch.arange(len(self))[indices]
        picked = torch.as_tensor(indices)
        if picked.dtype == torch.bool:
            if picked.shape != (len(self),):
                raise ValueError(f"A mask must have shape ({len(self)},), got {tuple(picked.shape)}.")
            picked = picked.nonzero().flatten()
        picked = picked.to("cpu", torch.int64).flatten()
        if picked.numel() and not (int(picked.min()) >= 0 and int(picked.max()) < len(self)):
            wrong = picked[(picked < 0) | (picked >= len(self))][0].item()
            raise ValueError(f"Indices must lie in 0 ... {len(self) - 1}, got {wrong}.")
        return picked

    def subset(self, indices: Indices) -> Dataset:
        """Only the samples `indices` (numbers, a mask (n,) or a slice), in that order."""
        picked = self._indices(indices)
        if picked.numel() == 0:
            raise ValueError(f"A subset of {self.name!r} needs at least one index.")
        return Dataset(
            self.rows.pick(picked),
            None if self.labels is None else self.labels.index_select(0, picked),
            data_range=self.data_range,
            num_classes=self.num_classes,
            name=self.name,
            levels=self.levels,
            class_names=self.class_names,
        )

    def split(self, fraction: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
        """(train, held out): `fraction` of the samples, drawn at random, held out; both keep the order of the data.

        Args:
            fraction: in (0, 1).
            seed: of the draw; the same seed gives the same split.
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction must lie between 0 and 1, got {fraction}.")
        if len(self) < 2:
            raise ValueError("A dataset of one sample cannot be split.")
        held_out = min(len(self) - 1, max(1, round(fraction * len(self))))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[held_out:].sort().values), self.subset(order[:held_out].sort().values)

    @property
    def fingerprint(self) -> str:
        """A short hash of shape, labels and 64 evenly spaced samples: tells whether a run is resumed on the same data."""
        digest = hashlib.sha256(repr((len(self), self.shape, self.data_range, self.num_classes)).encode())
        probe = torch.linspace(0, len(self) - 1, min(64, len(self)), dtype=torch.float64).long()
        digest.update(self.rows.read(probe).numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def to_config(self) -> dict[str, Any]:
        """A JSON-able description; ``load_data(**config["load"])`` makes the dataset again where ``load`` is not None."""
        return {
            "name": self.name,
            "n": len(self),
            "shape": list(self.shape),
            "data_range": None if self.data_range is None else list(self.data_range),
            "num_classes": self.num_classes,
            "levels": self.levels,
            "class_names": self.class_names,
            "fingerprint": self.fingerprint,
            "load": self.origin,
        }

    def __repr__(self) -> str:
        classes = f", {self.num_classes} classes" if self.num_classes is not None else ""
        return f"Dataset({self.name!r}, {len(self)} of shape {self.shape}{classes}, range {self.data_range})"


def check_range(data_range: Sequence[float] | None) -> tuple[float, float] | None:
    """`data_range` as (low, high), checked."""
    if data_range is None:
        return None
    if len(data_range) != 2 or not float(data_range[0]) < float(data_range[1]):
        raise ValueError(f"data_range must be (low, high) with low < high, got {tuple(data_range)}.")
    return float(data_range[0]), float(data_range[1])


def check_values(x: Tensor, data_range: tuple[float, float] | None) -> None:
    """Refuses values that are not finite or lie outside `data_range` (by more than rounding)."""
    if x.ndim < 2:
        raise ValueError(f"Data must have shape (n, *shape) with at least two axes, got {tuple(x.shape)}.")
    if x.numel() == 0:
        return
    if x.is_complex():
        raise ValueError("Data must be real, got complex values.")
    if x.is_floating_point() and not torch.isfinite(x).all():
        row = (~torch.isfinite(x)).flatten(1).any(1).nonzero()[0].item()
        raise ValueError(f"Data must be finite, but sample {row} holds NaN or infinity.")
    if data_range is not None:
        low, high = float(x.min()), float(x.max())
        slack = 1e-5 * (data_range[1] - data_range[0])
        if low < data_range[0] - slack or high > data_range[1] + slack:
            raise ValueError(
                f"Data must lie in data_range={data_range}, but their values lie in [{low:g}, {high:g}]; state their range."
            )


def check_labels(
    labels: Sequence[int] | np.ndarray | Tensor | None, n: int, num_classes: int | None
) -> tuple[Tensor | None, int | None]:
    """Labels as (n,) int64 with the number of classes, checked."""
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
    if labels is None:
        return None, None
    found = torch.as_tensor(labels).cpu()
    if found.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one for each sample, got {tuple(found.shape)}.")
    if found.is_floating_point() and not torch.equal(found, found.round()):
        raise ValueError("labels must be whole numbers.")
    found = found.to(torch.int64)
    if num_classes is None:
        num_classes = int(found.max()) + 1
    wrong = found[(found < 0) | (found >= num_classes)]
    if len(wrong):
        raise ValueError(f"labels must lie in 0 ... {num_classes - 1}, got {wrong[0].item()}.")
    return found, num_classes
