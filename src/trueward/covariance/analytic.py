r"""Analytic-DPM: the best scalar variance of every reverse step, from one number per noise level.

The expected covariance of x_0 given x_t, averaged over its d dimensions, follows from the mean square of the noise prediction

    gamma(t) = E || E[eps | x_t] ||^2 / d  <= 1
    C(t)     = E tr Cov[x_0 | x_t] / d = (sigma_t / alpha_t)^2 (1 - gamma(t))                      (Bao et al. 2022, eq. 6)

and the step t -> s has the least divergence from the process with the variance lambda^2 + kappa^2 C(t)
(:mod:`trueward.samplers.reverse_step`), whatever eta, s and the number of steps. Two facts bound C and so clip estimates of it:

    0 <= C <= (sigma_t / alpha_t)^2,        C <= ((b - a) / 2)^2  for data in [a, b]                (Corollaries 1 and 3)

For a mean that is not exact the best scalar is the mean squared *residual* of the prediction,

    R(t) = (sigma_t / alpha_t)^2 E || eps - eps_theta(x_t) ||^2 / d  =  C(t) for an exact mean,

which is never negative. A table holds both: ``analytic`` is C from gamma, ``analytic-residual`` is R.

Convention: gamma is the mean squared *noise prediction* ("mean_sq_eps", dimensionless), which is sigma_t^2 times the mean
squared score that the paper calls Gamma.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trueward.denoisers import Denoiser, Guided, Posterior
from trueward.naming import check_name
from trueward.samplers.reverse_step import ReverseSteps
from trueward.schedules import DiscreteSchedule, Schedule, Time, as_time

CONVENTION = "mean_sq_eps"
SCALAR_KINDS = ("analytic", "analytic-residual")
Range = tuple[float, float] | None


def largest_variance(schedule: Schedule, t: np.ndarray, data_range: Range) -> np.ndarray:
    """The least of the two upper bounds of C(t): (sigma_t / alpha_t)^2 and, for data in [a, b], ((b - a) / 2)^2."""
    bound = np.exp(-schedule.log_snr(torch.as_tensor(t)).numpy())
    return bound if data_range is None else np.minimum(bound, (0.5 * (data_range[1] - data_range[0])) ** 2)


def posterior_variance(schedule: Schedule, t: np.ndarray, gamma: np.ndarray, data_range: Range) -> np.ndarray:
    """C(t) = (sigma_t / alpha_t)^2 (1 - gamma), clipped to [0, `largest_variance`]."""
    t = np.asarray(t, dtype=np.float64)
    ratio = np.exp(-schedule.log_snr(torch.as_tensor(t)).numpy())
    return np.clip(ratio * (1.0 - np.asarray(gamma, np.float64)), 0.0, largest_variance(schedule, t, data_range))


def optimal_variance(
    schedule: Schedule,
    s: float | np.ndarray,
    t: float | np.ndarray,
    gamma: float | np.ndarray,
    eta: float = 1.0,
    data_range: Range = (-1.0, 1.0),
) -> np.ndarray:
    """sigma*^2 = lambda^2 + kappa^2 C(t) of the steps t -> s (Bao et al. 2022, eq. 8), arrays that broadcast.

    Args:
        schedule: the forward process.
        s, t: times, s < t; s = 0 for the data themselves.
        gamma: mean squared noise prediction at `t`.
        eta: 1 is DDPM, 0 is DDIM.
        data_range: (a, b) of bounded data, None for unbounded.

    Raises:
        ValueError: gamma that is negative or not finite, eta outside [0, 1], or s not before t.
    """
    gamma = np.asarray(gamma, dtype=np.float64)
    if not bool((np.isfinite(gamma) & (gamma >= 0)).all()):
        raise ValueError(f"gamma must be finite and not negative, got {gamma[~(gamma >= 0)].ravel()[:3].tolist()}.")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}.")
    step = ReverseSteps.between(schedule, s, t, eta)
    return step.lambda2 + step.kappa**2 * posterior_variance(schedule, np.asarray(t), gamma, data_range)


def variance_bounds(
    schedule: Schedule,
    s: float | np.ndarray,
    t: float | np.ndarray,
    eta: float = 1.0,
    data_range: Range = (-1.0, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) bound of the optimal variance of the steps t -> s, for any data (Bao et al. 2022, Theorem 2)."""
    step = ReverseSteps.between(schedule, s, t, eta)
    largest = largest_variance(schedule, np.asarray(t, dtype=np.float64), data_range)
    return step.lambda2 + 0.0 * largest, step.lambda2 + step.kappa**2 * largest


@dataclass(frozen=True, eq=False)
class GammaTable:
    """What was measured of a model at some noise levels; good for every sampler, eta, trajectory and bound.

    Args:
        schedule: the forward process it was measured under.
        times: (T,) increasing times; all nodes of a discrete schedule, or a grid of a continuous one.
        gamma, gamma_error: (T,) mean squared noise prediction and its standard error.
        residual, residual_error: (T,) mean squared residual eps - eps_theta and its standard error.
        count: (T,) examples used.
        about: JSON-able facts: seed, model, data, dimensions.

    Raises:
        ValueError: values that are not finite or negative, or times that do not increase.
    """

    schedule: Schedule
    times: np.ndarray
    gamma: np.ndarray
    residual: np.ndarray
    gamma_error: np.ndarray
    residual_error: np.ndarray
    count: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    columns: ClassVar[tuple[str, ...]] = ("times", "gamma", "residual", "gamma_error", "residual_error", "count")

    def __post_init__(self) -> None:
        for name in self.columns:
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
            if getattr(self, name).shape != self.times.shape or self.times.ndim != 1:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}, but there are times {self.times.shape}."
                )
        if len(self.times) == 0 or bool((np.diff(self.times) <= 0).any()):
            raise ValueError("times must be at least one and strictly increasing.")
        for name in ("gamma", "residual"):
            bad = ~(np.isfinite(getattr(self, name)) & (getattr(self, name) >= 0))
            if bad.any():
                where = self.times[bad][0]
                raise ValueError(
                    f"{name} is {getattr(self, name)[bad][0]} at t={where:.6g}; it must be finite and >= 0."
                )

    @classmethod
    def exact(cls, schedule: Schedule, times: np.ndarray, gamma: np.ndarray, residual: np.ndarray) -> GammaTable:
        """A table of known values, without errors (closed forms, quadrature)."""
        zero = np.zeros_like(np.asarray(times, np.float64))
        return cls(schedule, times, gamma, residual, zero, zero, zero)

    def __len__(self) -> int:
        return len(self.times)

    def check(self, schedule: Schedule) -> None:
        """Refuses a schedule other than the one it was measured under.

        Raises:
            ValueError: naming both fingerprints.
        """
        if schedule.fingerprint != self.schedule.fingerprint:
            raise ValueError(
                f"These statistics were measured under the schedule {self.schedule.fingerprint}, the model has "
                f"{schedule.fingerprint}; fit them again with `trueward fit-covariance`."
            )

    def at(self, t: float | np.ndarray, kind: str = "analytic") -> np.ndarray:
        """gamma (kind analytic) or the residual (analytic-residual) at the times `t`, linear between the measured ones.

        Raises:
            ValueError: for a time outside the measured ones.
        """
        check_name("covariance", kind, SCALAR_KINDS)
        t = np.asarray(t, dtype=np.float64)
        slack = 1e-9 * self.times[-1]
        if bool((t < self.times[0] - slack).any() or (t > self.times[-1] + slack).any()):
            raise ValueError(
                f"The statistics cover t in [{self.times[0]:g}, {self.times[-1]:g}], but t={float(t.min()):g} ... "
                f"{float(t.max()):g} was asked for."
            )
        if len(self) < self._nodes:
            nearest = np.abs(self.times - t[..., None]).min(-1)
            if bool((nearest > slack).any()):
                raise ValueError(
                    "This table was measured at some nodes only, and not at all that are asked for; measure it at all."
                )
        return np.interp(t, self.times, self.gamma if kind == "analytic" else self.residual)

    @property
    def _nodes(self) -> int:
        return self.schedule.nodes if isinstance(self.schedule, DiscreteSchedule) else 0

    def variance(self, t: float | np.ndarray, kind: str = "analytic", data_range: Range = None) -> np.ndarray:
        """C(t), clipped to both bounds (analytic), or R(t), clipped to the range of the data (analytic-residual)."""
        value = self.at(t, kind)
        t = np.asarray(t, dtype=np.float64)
        if kind == "analytic":
            return posterior_variance(self.schedule, t, value, data_range)
        variance = np.exp(-self.schedule.log_snr(torch.as_tensor(t)).numpy()) * value
        return variance if data_range is None else np.minimum(variance, (0.5 * (data_range[1] - data_range[0])) ** 2)

    @property
    def by_node(self) -> np.ndarray:
        """gamma of a discrete schedule by the paper's index, (N + 1,) with NaN at 0."""
        if len(self) != self._nodes:
            raise ValueError(f"The table has {len(self)} times, not one for every node of a discrete schedule.")
        return np.concatenate([[np.nan], self.gamma])


class AnalyticCovariance(Guided):
    """A denoiser whose `Posterior.var` is the best scalar of each noise level, from a table.

    Args:
        inner: the model the table was measured on.
        table: what :func:`trueward.covariance.estimate_gamma` measured.
        kind: analytic, or analytic-residual (the better one for a mean that is not exact).
        data_range: bounds of the data; "inner" takes the denoiser's, None means unbounded.

    Raises:
        ValueError: if the table belongs to another schedule.
    """

    citation: ClassVar[tuple[str, ...]] = ("bao2022analytic",)

    def __init__(
        self, inner: Denoiser, table: GammaTable, kind: str = "analytic", data_range: Range | str = "inner"
    ) -> None:
        super().__init__(inner)
        table.check(inner.schedule)
        self.table, self.covariance_kind = table, check_name("covariance", kind, SCALAR_KINDS)
        self.bounds: Range = inner.data_range if isinstance(data_range, str) else data_range

    @property
    def measured(self) -> dict[str, Tensor]:
        """The numbers of the table that samples depend on, for fingerprints."""
        kind = self.covariance_kind
        return {f"{kind} {name}": torch.as_tensor(getattr(self.table, name)) for name in ("times", "gamma", "residual")}

    def variance(self, t: Time, x: Tensor) -> float | Tensor:
        """C(t): a float for one time, (batch, 1, ..., 1) for a time per row."""
        if not isinstance(t, Tensor) or t.ndim == 0:
            return float(self.table.variance(float(t), self.covariance_kind, self.bounds))
        found = self.table.variance(as_time(t).cpu().numpy(), self.covariance_kind, self.bounds)
        return torch.as_tensor(found).to(x.device, x.dtype).view((-1,) + (1,) * (x.ndim - 1))

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        return self.inner(x_t, t, **condition).replace(var=self.variance(t, x_t))
