r"""What a sampler has computed for a schedule: its levels and tables of coefficients, one entry for each step.

Everything is float64 until it meets the data. A table is asked for one level, or for another level in every row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from trueward.times import Levels

Coefficient: TypeAlias = float | Tensor
Level: TypeAlias = (
    int | Tensor
)  # one level for the batch, or a level for every row, (batch,) int64  # one level for the batch, or a level for every row, (batch,) int64


class Table:
    """One coefficient for each step, float64: a float for one level, a tensor (batch, 1, ..., 1) for a level per row."""

    __slots__ = ("_devices", "_scalars", "values")

    def __init__(self, values: np.ndarray) -> None:
        self.values: list[float] = np.asarray(values, dtype=np.float64).tolist()
        self._devices: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._scalars: dict[torch.dtype, tuple[Coefficient, ...]] = {}

    def __len__(self) -> int:
        return len(self.values)

    def __call__(self, level: Level, x: Tensor) -> Coefficient:
        """The coefficient at `level`, ready to multiply `x`."""
        if isinstance(level, int):
            return self.values[level]
        key = (x.device, x.dtype)
        if key not in self._devices:
            self._devices[key] = torch.tensor(self.values, dtype=torch.float64).to(x.dtype).to(x.device)
        return self._devices[key][level].view((-1,) + (1,) * (x.ndim - 1))

    def scalar(self, level: int, x: Tensor) -> Coefficient:
        """The entry as a factor for ``torch.mul(x, ...)``: a tensor (), which costs half of a float on small x.

        Half-precision x gets the float: a half-precision coefficient would lose digits that the arithmetic keeps.
        """
        scalars = self._scalars.get(x.dtype)
        if scalars is None:
            exact = torch.tensor(self.values, dtype=torch.float64)
            whole = x.dtype in (torch.float32, torch.float64)
            scalars = self._scalars[x.dtype] = exact.to(x.dtype).unbind() if whole else tuple(self.values)
        return scalars[level]

    def time(self, level: Level) -> float | Tensor:
        """The entry as a time: a float, or float64 (batch,) on the device of `level` (the CPU if it has no float64)."""
        if isinstance(level, int):
            return self.values[level]
        level = level.cpu() if level.device.type == "mps" else level
        return torch.tensor(self.values, dtype=torch.float64, device=level.device)[level]


def combine(*terms: tuple[Coefficient, Tensor], out: Tensor | None = None) -> Tensor:
    """Sum of coefficient times tensor, written into `out` (which must not be one of the tensors but the first)."""
    (c, x), *rest = terms
    out = torch.mul(x, c, out=out)
    for c, x in rest:
        if isinstance(c, Tensor):
            out.addcmul_(x, c)
        elif c != 0.0:
            out.add_(x, alpha=c)
    return out


@dataclass(frozen=True, eq=False)
class Plan:
    """What a sampler has computed for a schedule: its levels; subclasses add tables of coefficients.

    `times` holds the time of every level as a :class:`Table`, for denoisers.
    """

    levels: Levels
    times: Table = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", Table(self.levels.t))

    @property
    def steps(self) -> int:
        """Number of steps, one less than levels."""
        return len(self.levels) - 1
