"""Where the rows of a dataset live: as floats, as whole numbers on a scale of grey levels, or as files decoded when asked for.

Quantised data keep their whole numbers k in 0 ... levels-1 and are mapped when they are read,

    x = low + (high - low) k / (levels - 1),

so MNIST takes 47 MB instead of 188 and the value of a level is the same in every batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Rows(ABC):
    """`len(rows)` samples of one `shape`; `levels` is the number of grey levels, None for continuous values."""

    shape: tuple[int, ...]
    levels: int | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Tensor) -> Tensor:
        """The rows `indices` (batch,) int64 as float32 (batch, *shape)."""

    @abstractmethod
    def pick(self, indices: Tensor) -> Rows:
        """Only these rows, in this order."""


class Dense(Rows):
    """Float values in memory, (n, *shape)."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.to(torch.float32)
        self.shape = tuple(x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def read(self, indices: Tensor) -> Tensor:
        return self.x.index_select(0, indices)

    def pick(self, indices: Tensor) -> Rows:
        return Dense(self.read(indices))


class Quantised(Rows):
    """Whole numbers 0 ... levels-1 in memory, (n, *shape) uint8, read as values in `data_range`."""

    def __init__(self, codes: Tensor, levels: int, data_range: tuple[float, float]) -> None:
        self.codes = codes
        self.levels = levels
        self.data_range = data_range
        self.shape = tuple(codes.shape[1:])

    def __len__(self) -> int:
        return len(self.codes)

    def read(self, indices: Tensor) -> Tensor:
        # with whole-numbered ends the only rounding is the division's, so every level has its nearest float32
        low, high = self.data_range
        top = (self.levels or 256) - 1
        return self.codes.index_select(0, indices).to(torch.float32).mul_(high - low).add_(low * top).div_(top)

    def pick(self, indices: Tensor) -> Rows:
        return Quantised(self.codes.index_select(0, indices), self.levels or 256, self.data_range)


class Decoded(Rows):
    """Images decoded when they are first asked for, and then kept as uint8 if all of them fit in `keep_bytes`.

    Args:
        decode: row number -> (channels, height, width) uint8.
        numbers: (n,) int64, the row numbers of this dataset.
        shape: (channels, height, width).
        data_range: values of the levels 0 and 255.
    """

    levels = 256

    def __init__(
        self,
        decode: Callable[[int], Tensor],
        numbers: Tensor,
        shape: tuple[int, ...],
        data_range: tuple[float, float],
        keep_bytes: int = 2**30,
    ) -> None:
        self.decode = decode
        self.numbers = numbers
        self.shape = shape
        self.data_range = data_range
        self.keep_bytes = keep_bytes
        self._forget()

    def _forget(self) -> None:
        self._kept: Tensor | None = None
        self._known: Tensor | None = None
        if len(self.numbers) * torch.Size(self.shape).numel() <= self.keep_bytes:
            # pages of this memory are claimed by the system only when they are written
            self._kept = torch.empty((len(self.numbers), *self.shape), dtype=torch.uint8)
            self._known = torch.zeros(len(self.numbers), dtype=torch.bool)

    def __getstate__(self) -> dict[str, Any]:
        """A worker process is sent the way to the pictures, not the pictures."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_known")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return len(self.numbers)

    def _codes(self, indices: Tensor) -> Tensor:
        if self._kept is None or self._known is None:
            return torch.stack([self.decode(int(self.numbers[i])) for i in indices.tolist()])
        for i in indices[~self._known[indices]].tolist():
            self._kept[i] = self.decode(int(self.numbers[i]))
            self._known[i] = True
        return self._kept.index_select(0, indices)

    def read(self, indices: Tensor) -> Tensor:
        if len(indices) == 0:
            return torch.empty((0, *self.shape))
        codes = self._codes(indices)
        return Quantised(codes, 256, self.data_range).read(torch.arange(len(codes)))

    def pick(self, indices: Tensor) -> Rows:
        return Decoded(self.decode, self.numbers[indices], self.shape, self.data_range, self.keep_bytes)
