r"""Which times an objective trains at.

A time sampler is a density p(t) on [t_min, t_max] of any schedule, drawn by inverting its distribution function, so that the
uniform numbers of a batch may be spread evenly (u_i = u_0 + i/n mod 1, Kingma et al. 2021) without any sampler knowing. With
``log_level = log(sigma/alpha)``, whose slope in time is g^2 / (2 sigma^2),

    UniformTimes      p(t) = 1 / (t_max - t_min)
    LogNormalTimes    log_level ~ N(mean, std^2), cut to the schedule's range        (Karras et al. 2022)
    ImportanceTimes   p(t) proportional to g^2/sigma^2: uniform in log-SNR           (Song et al. 2021b, Kingma et al. 2021)
    DiscreteTimes     every node of a beta table alike                               (Ho et al. 2020)

``density`` is p(t) itself: an average of f(t)/p(t) is an unbiased estimate of the integral of f over the times.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from trueward.naming import check_name, look_up
from trueward.schedules import EDM, DiscreteSchedule, Schedule

_REGISTRY: dict[str, type[TimeSampler]] = {}


@dataclass(frozen=True)
class TimeSampler(ABC):
    """A distribution of times.

    Args:
        t_min, t_max: where to cut; default: the schedule's own ends. Soft truncation moves `t_min` from batch to batch.
        stratified: spread the uniform numbers of a batch evenly instead of drawing them independently. Each row still has
            the right distribution; the average over the batch has a smaller variance.
    """

    t_min: float | None = None
    t_max: float | None = None
    stratified: bool = True
    citation: ClassVar[tuple[str, ...]] = ("kingma2021variational",)

    def __init_subclass__(cls) -> None:
        _REGISTRY[cls.__name__] = cls

    def ends(self, schedule: Schedule) -> tuple[float, float]:
        """(t_min, t_max) on this schedule.

        Raises:
            ValueError: if they are outside the schedule's own range or not in order.
        """
        low = schedule.t_min if self.t_min is None else self.t_min
        high = schedule.t_max if self.t_max is None else self.t_max
        if not 0.0 <= low < high <= schedule.t_max:
            raise ValueError(
                f"Training times need 0 <= t_min < t_max <= {schedule.t_max:g}, got t_min={low:g}, t_max={high:g}."
            )
        return low, high

    @abstractmethod
    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """The time below which a share `u` of all draws lies. u: any shape in (0, 1); returns float64 of that shape."""

    @abstractmethod
    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        """p(t), float64 of the shape of `t`."""

    def to_config(self) -> dict[str, Any]:
        """A JSON-able description; :func:`times_from_config` makes an equal sampler of it."""
        return {"times": type(self).__name__, **asdict(self)}


def _log_level(t: Tensor | float, schedule: Schedule) -> Tensor:
    return -0.5 * schedule.log_snr(t)


def _slope(t: Tensor, schedule: Schedule) -> Tensor:
    """d log(sigma/alpha) / dt = g^2 / (2 sigma^2)."""
    return 0.5 * torch.exp(2.0 * (torch.log(schedule.diffusion(t)) - schedule.log_sigma(t)))


@dataclass(frozen=True)
class UniformTimes(TimeSampler):
    """t uniform on [t_min, t_max]."""

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        low, high = self.ends(schedule)
        return low + u.to(torch.float64) * (high - low)

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        low, high = self.ends(schedule)
        return torch.full_like(t, 1.0 / (high - low), dtype=torch.float64)


@dataclass(frozen=True)
class LogNormalTimes(TimeSampler):
    """log(sigma/alpha) normal, cut to the range of the schedule (Karras et al. 2022, table 1: P_mean, P_std)."""

    mean: float = -1.2
    std: float = 1.2
    citation: ClassVar[tuple[str, ...]] = ("karras2022elucidating",)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"LogNormalTimes needs std > 0, got {self.std}.")

    def _range(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        ends = torch.stack([_log_level(t, schedule) for t in self.ends(schedule)])
        below, above = torch.special.ndtr((ends - self.mean) / self.std)
        return below, above

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        below, above = self._range(schedule)
        z = torch.special.ndtri(torch.lerp(below.to(u.device), above.to(u.device), u.to(torch.float64)))
        t = schedule.time_of_log_snr(-2.0 * (self.mean + self.std * z))
        return t.clamp(*self.ends(schedule))

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        below, above = self._range(schedule)
        z = (_log_level(t, schedule) - self.mean) / self.std
        normal = torch.exp(-0.5 * z * z) / (self.std * math.sqrt(2.0 * math.pi))
        return normal * _slope(t, schedule) / (above - below).to(t.device)


@dataclass(frozen=True)
class ImportanceTimes(TimeSampler):
    """Uniform in log-SNR, the density proportional to the likelihood weight g^2/sigma^2."""

    citation: ClassVar[tuple[str, ...]] = ("song2021maximum", "kingma2021variational")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        low, high = self.ends(schedule)
        first, last = (schedule.log_snr(t).to(u.device) for t in (low, high))
        if not bool(first.isfinite()):
            raise ValueError(f"The log-SNR is not finite at t_min={low:g}: give the time sampler a positive t_min.")
        return schedule.time_of_log_snr(torch.lerp(first, last, u.to(torch.float64))).clamp(low, high)

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        low, high = self.ends(schedule)
        span = _log_level(high, schedule) - _log_level(low, schedule)
        return _slope(t, schedule) / span.to(t.device)


@dataclass(frozen=True)
class DiscreteTimes(TimeSampler):
    """The nodes of a :class:`DiscreteSchedule`, each with the same probability.

    As a density it counts every node as an interval of length 1/N_eff.
    """

    citation: ClassVar[tuple[str, ...]] = ("ho2020denoising",)

    def _nodes(self, schedule: Schedule) -> tuple[int, int, int]:
        if not isinstance(schedule, DiscreteSchedule):
            raise ValueError(f"DiscreteTimes needs a DiscreteSchedule, got {type(schedule).__name__}.")
        low, high = self.ends(schedule)
        first = math.ceil(low * schedule.nodes - 1e-6)
        last = math.floor(high * schedule.nodes + 1e-6)
        if last < first:
            raise ValueError(f"There is no node of the schedule between t_min={low:g} and t_max={high:g}.")
        return first, last, schedule.nodes

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        first, last, nodes = self._nodes(schedule)
        number = torch.floor(u.to(torch.float64) * (last - first + 1)).clamp(max=last - first)
        return (first + number) / nodes

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        first, last, nodes = self._nodes(schedule)
        return torch.full_like(t, nodes / (last - first + 1), dtype=torch.float64)


_NAMED: dict[str, type[TimeSampler]] = {
    "uniform": UniformTimes,
    "log-normal": LogNormalTimes,
    "importance": ImportanceTimes,
    "discrete": DiscreteTimes,
}


def time_sampler(name: str | TimeSampler, **options: Any) -> TimeSampler:
    """A time sampler by its name: uniform, log-normal, importance, discrete; a sampler passes through."""
    return name if isinstance(name, TimeSampler) else look_up("time sampler", name, _NAMED)(**options)


def default_times(schedule: Schedule) -> TimeSampler:
    """What the schedule's authors trained at: log-normal for EDM, the nodes of a table, uniform otherwise."""
    if isinstance(schedule, EDM):
        return LogNormalTimes()
    return DiscreteTimes() if isinstance(schedule, DiscreteSchedule) else UniformTimes()


def times_from_config(config: dict[str, Any]) -> TimeSampler:
    """The time sampler that :meth:`TimeSampler.to_config` described."""
    options = dict(config)
    cls = look_up("time sampler", options.pop("times", "(none)"), _REGISTRY)
    for name in options:
        check_name(f"option of {cls.__name__}", name, [f.name for f in fields(cls)])
    return cls(**options)
