r"""Time grids: which noise levels a sampler visits.

A grid is ``grid(schedule, steps, start, end) -> (steps + 1,)`` float64, from `start` to `end` (both hit exactly; `start` may
lie before `end`, which inverts). :class:`Levels` adds alpha and sigma and, where a sampler goes on to the data themselves,
a last level with alpha = 1 and sigma = 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64

from trueward.naming import look_up
from trueward.schedules import DiscreteSchedule, Schedule, VariancePreserving

Array = Float64[np.ndarray, "levels"]


@dataclass(frozen=True, eq=False)
class Levels:
    """The noise levels a sampler visits, noisiest first: times, alpha and sigma as float64 arrays (levels,)."""

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    @classmethod
    def of(cls, schedule: Schedule, t: np.ndarray, clean: bool = False) -> Levels:
        """The levels at the times `t`; `clean` appends the data themselves (t = 0, alpha = 1, sigma = 0).

        Raises:
            ValueError: if a noise level is to be appended to that is the data already.
        """
        times = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = schedule.alpha(times).numpy(), schedule.sigma(times).numpy()
        if clean:
            if sigma[-1] == 0.0:
                raise ValueError(
                    f"t_end={t[-1]:g} has no noise left, but this sampler goes on to the data by itself: end at a positive time."
                )
            t, alpha, sigma = np.append(t, 0.0), np.append(alpha, 1.0), np.append(sigma, 0.0)
        return cls(t, alpha, sigma)

    def __len__(self) -> int:
        return len(self.t)

    def part(self, which: slice) -> Levels:
        """Some of the levels."""
        return Levels(self.t[which], self.alpha[which], self.sigma[which])

    @property
    def half_log_snr(self) -> np.ndarray:
        """log(alpha / sigma), DPM-Solver's lambda; +inf at the data."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)


class TimeGrid(ABC):
    """Places `steps + 1` times between two given ones."""

    citation: ClassVar[tuple[str, ...]] = ()

    def __call__(self, schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> Array:
        """The times, float64 (steps + 1,), from `start` (default `schedule.t_max`) to `end` (default `schedule.t_min`)."""
        start = schedule.t_max if start is None else float(start)
        end = schedule.t_min if end is None else float(end)
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"steps must be a whole number >= 1, got {steps!r}.")
        if not (math.isfinite(start) and math.isfinite(end)) or min(start, end) < 0:
            raise ValueError(f"Times must be finite and not negative, got start={start}, end={end}.")
        if steps == 0:
            return np.array([start])
        if start == end:
            raise ValueError(f"start and end must differ, both are {start}.")
        t = np.array(self.place(schedule, steps, start, end), dtype=np.float64)
        t[0], t[-1] = start, end  # a round trip through log-SNR is off in the last digit
        return t

    @abstractmethod
    def place(self, schedule: Schedule, steps: int, start: float, end: float) -> np.ndarray:
        """The `steps + 1` times; the ends need not be exact."""


@dataclass(frozen=True)
class UniformLogSNR(TimeGrid):
    """Uniform in log-SNR: the natural grid of exponential integrators (Lu et al. 2022)."""

    citation: ClassVar[tuple[str, ...]] = ("lu2022dpmsolver",)

    def place(self, schedule: Schedule, steps: int, start: float, end: float) -> np.ndarray:
        a, b = schedule.log_snr(start).item(), schedule.log_snr(end).item()
        if not (math.isfinite(a) and math.isfinite(b)):
            raise ValueError(
                f"The log-SNR is not finite at t={start if not math.isfinite(a) else end:g}; end sampling at a small positive time."
            )
        return schedule.time_of_log_snr(torch.linspace(a, b, steps + 1, dtype=torch.float64)).numpy()


@dataclass(frozen=True)
class UniformTime(TimeGrid):
    """Uniform in t: good at high resolution and in latent space."""

    def place(self, schedule: Schedule, steps: int, start: float, end: float) -> np.ndarray:
        return np.linspace(start, end, steps + 1)


@dataclass(frozen=True)
class QuadraticTime(TimeGrid):
    """Uniform in sqrt(t): more steps near the data."""

    def place(self, schedule: Schedule, steps: int, start: float, end: float) -> np.ndarray:
        return np.linspace(math.sqrt(start), math.sqrt(end), steps + 1) ** 2


@dataclass(frozen=True)
class Karras(TimeGrid):
    """Uniform in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5)."""

    rho: float = 7.0
    citation: ClassVar[tuple[str, ...]] = ("karras2022elucidating",)

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho must be positive, got {self.rho}.")

    def place(self, schedule: Schedule, steps: int, start: float, end: float) -> np.ndarray:
        a, b = (math.exp(-0.5 * schedule.log_snr(t).item() / self.rho) for t in (start, end))
        level = torch.linspace(a, b, steps + 1, dtype=torch.float64) ** self.rho
        return schedule.time_of_log_snr(-2.0 * torch.log(level)).numpy()


@dataclass(frozen=True)
class EvenNodes(TimeGrid):
    """Evenly spread nodes of a discrete table, rounded half to even (the even trajectory of Analytic-DPM).

    On a continuous schedule it is :class:`UniformTime` if the process preserves variance (where such tables come from), else
    :class:`UniformLogSNR` (time may be the noise level itself, which must not be divided evenly).
    """

    def place(self, schedule: Schedule, steps: int, start: float, end: float) -> np.ndarray:
        if not isinstance(schedule, DiscreteSchedule):
            grid: TimeGrid = UniformTime() if isinstance(schedule, VariancePreserving) else UniformLogSNR()
            return grid.place(schedule, steps, start, end)
        first, last = round(start * schedule.nodes), round(end * schedule.nodes)
        if steps > abs(first - last):
            raise ValueError(
                f"{steps} steps need {steps + 1} nodes, but the table has {abs(first - last) + 1} between the two times."
            )
        return np.round(np.linspace(first, last, steps + 1)) / schedule.nodes


@dataclass(frozen=True)
class Times(TimeGrid):
    """Exactly these times, noisiest first, e.g. an optimal trajectory; `steps` must fit."""

    times: tuple[float, ...]

    def __init__(self, times: Sequence[float]) -> None:
        object.__setattr__(self, "times", tuple(float(t) for t in times))
        if len(self.times) < 2 or any(a <= b for a, b in zip(self.times, self.times[1:], strict=False)):
            raise ValueError("times must be at least two and strictly decreasing.")

    def __call__(self, schedule: Schedule, steps: int, start: float | None = None, end: float | None = None) -> Array:
        if steps != len(self.times) - 1:
            raise ValueError(f"{len(self.times)} times make {len(self.times) - 1} steps, but {steps} were asked for.")
        return np.array(self.times)

    def place(self, schedule: Schedule, steps: int, start: float, end: float) -> np.ndarray:
        return np.array(self.times)


_NAMED: dict[str, Any] = {
    "log-snr": UniformLogSNR,
    "uniform": UniformTime,
    "quadratic": QuadraticTime,
    "karras": Karras,
    "even": EvenNodes,
}


def time_grid(name: str | TimeGrid) -> TimeGrid:
    """A grid by its name: log-snr, uniform, quadratic, karras, even; a grid passes through."""
    return name if isinstance(name, TimeGrid) else look_up("time grid", name, _NAMED)()


def time_grid_names() -> list[str]:
    """The names that :func:`time_grid` knows."""
    return list(_NAMED)
