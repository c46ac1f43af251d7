r"""Noise schedules: the forward process

.. math:: x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon, \qquad \varepsilon \sim N(0, I),

with the signal-to-noise ratio ``alpha^2 / sigma^2`` strictly decreasing in the time ``t``. The same process is the SDE
``dx = f(t) x dt + g(t) dw`` with

    f(t) = d log alpha / dt                               (``drift``)
    g(t)^2 = d sigma^2 / dt - 2 f(t) sigma^2              (``diffusion`` is g)

Throughout, ``log_snr = log(alpha^2 / sigma^2)``; DPM-Solver's ``lambda`` is half of it. Every function of time takes a
float or a tensor of any shape and returns a float64 tensor of that shape: float32 loses three digits of the log-SNR near
t = 0, so schedules and solver coefficients are float64 and are cast to the dtype of the data at the last moment.

A schedule is an immutable value: two schedules with the same numbers compare equal and hash alike.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, fields
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from trueward.naming import check_name, look_up

Time: TypeAlias = float | Tensor

_REGISTRY: dict[str, type[Schedule]] = {}


def as_time(t: Time) -> Tensor:
    """`t` as a float64 tensor on its own device (on the CPU where the device has no float64)."""
    if isinstance(t, Tensor):
        return t.to("cpu", torch.float64) if t.device.type == "mps" else t.to(torch.float64)
    return torch.tensor(t, dtype=torch.float64)


class Schedule(ABC):
    """The forward process x_t = alpha(t) x_0 + sigma(t) eps, for t in [`t_min`, `t_max`].

    `t_max` is where sampling starts; `t_min` is where it ends unless told otherwise (the data themselves, alpha = 1 and
    sigma = 0, are one step further). A subclass gives `log_alpha`, `log_sigma`, `time_of_log_snr`, `drift`, `diffusion`.
    """

    t_min: float
    t_max: float
    citation: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        _REGISTRY[cls.__name__] = cls

    @abstractmethod
    def log_alpha(self, t: Time) -> Tensor:
        """log alpha(t). Returns float64 of the shape of `t`."""

    @abstractmethod
    def log_sigma(self, t: Time) -> Tensor:
        """log sigma(t). Returns float64 of the shape of `t`."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        """The time t with ``log_snr(t) == log_snr``. Returns float64 of the shape of the argument."""

    @abstractmethod
    def drift(self, t: Time) -> Tensor:
        """f(t) = d log alpha / dt."""

    @abstractmethod
    def diffusion(self, t: Time) -> Tensor:
        """g(t) = sqrt(d sigma^2/dt - 2 f sigma^2)."""

    def alpha(self, t: Time) -> Tensor:
        """alpha(t), the factor of the data."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        """sigma(t), the standard deviation of the noise."""
        return self.log_sigma(t).exp()

    def log_snr(self, t: Time) -> Tensor:
        """log(alpha(t)^2 / sigma(t)^2)."""
        return 2.0 * (self.log_alpha(t) - self.log_sigma(t))

    def label(self, t: Time) -> Tensor:
        """What a network made for this schedule expects as its time input. Default: the time itself."""
        return as_time(t)

    def prior_std(self, t: Time | None = None) -> Tensor:
        """Standard deviation of the Gaussian that sampling starts from at `t` (default `t_max`)."""
        return self.sigma(self.t_max if t is None else t)

    def at(self, t: float) -> tuple[float, float]:
        """(alpha(t), sigma(t)) of one time as Python floats, remembered: samplers ask for the same times again and again."""
        return _alpha_sigma(self, t)

    def coefficients(self, t: Time, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(alpha, sigma) ready to multiply `x`: floats for one time, else tensors (batch, 1, ..., 1) in the dtype of `x`.

        Args:
            t: a float, a tensor () or a tensor (batch,).
            x: (batch, *shape).
        """
        if not isinstance(t, Tensor):
            return self.at(float(t))
        if t.ndim == 0:
            return self.at(t.item())
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"t has shape {tuple(t.shape)}, but x has {x.shape[0]} rows: give one time or one time per row."
            )
        view = (-1,) + (1,) * (x.ndim - 1)
        t = as_time(t)
        return self.alpha(t).to(x.device, x.dtype).view(view), self.sigma(t).to(x.device, x.dtype).view(view)

    def add_noise(self, x_0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) noise. `x_0`, `noise`: (batch, *shape); `t`: () or (batch,)."""
        alpha, sigma = self.coefficients(t, x_0)
        return alpha * x_0 + sigma * noise

    # --- identity and storage -----------------------------------------------------------------------------------------

    def to_config(self) -> dict[str, Any]:
        """A JSON-able description; :meth:`from_config` makes an equal schedule of it."""
        return {"schedule": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_config(config: dict[str, Any]) -> Schedule:
        """The schedule that :meth:`to_config` described."""
        options = dict(config)
        cls = look_up("schedule", options.pop("schedule", "(none)"), _REGISTRY)
        known = {f.name for f in fields(cls) if f.init}  # type: ignore[arg-type]
        for name in options:
            check_name(f"option of {cls.__name__}", name, known)
        return cls(**options)

    @property
    def fingerprint(self) -> str:
        """A short hash of the schedule's numbers: statistics and critics made for another schedule are told by it."""
        return hashlib.sha256(json.dumps(self.to_config(), sort_keys=True).encode()).hexdigest()[:16]

    def validate(self) -> None:
        """Checks that alpha and sigma are finite and positive and that the SNR falls strictly from `t_min` to `t_max`.

        Raises:
            ValueError: with the first time at which one of them is not so.
        """
        if not (math.isfinite(self.t_min) and math.isfinite(self.t_max) and 0 <= self.t_min < self.t_max):
            raise ValueError(
                f"{type(self).__name__} needs 0 <= t_min < t_max, got t_min={self.t_min}, t_max={self.t_max}."
            )
        t = torch.linspace(self.t_min, self.t_max, 1001, dtype=torch.float64)
        if self.t_min == 0:
            t = t[1:]
        log_alpha, log_sigma = self.log_alpha(t), self.log_sigma(t)
        bad = ~(log_alpha.isfinite() & log_sigma.isfinite())
        if bad.any():
            raise ValueError(
                f"{type(self).__name__} has a non-finite or zero alpha or sigma at t={t[bad][0].item():.6g}."
            )
        rising = (log_alpha - log_sigma).diff() >= 0
        if rising.any():
            where = t[1:][rising][0].item()
            raise ValueError(
                f"{type(self).__name__}: the signal-to-noise ratio must fall with t, but it does not at t={where:.6g}."
            )


@functools.lru_cache(maxsize=65536)
def _alpha_sigma(schedule: Schedule, t: float) -> tuple[float, float]:
    return schedule.alpha(t).item(), schedule.sigma(t).item()


def require_positive(schedule: object, **values: float) -> None:
    """Raises a ValueError that names the schedule and the first value that is not a positive number."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{type(schedule).__name__} needs {name} > 0, got {value}.")
