r"""Ancestral sampling and the DDIM family: one Gaussian step from level t to level s < t,

    lambda^2 = eta^2 beta~,   beta~ = sigma_s^2 (1 - SNR_t / SNR_s)
    x_s      = alpha_s mean + sqrt(sigma_s^2 - lambda^2) eps + std noise
    std^2    = lambda^2 + kappa^2 var,   kappa = alpha_s - sqrt(sigma_s^2 - lambda^2) alpha_t / sigma_t

where `mean`, `eps` and `var` are the posterior's. eta = 1 is DDPM, eta = 0 is DDIM. The variance of x_0 given x_t is a
property of the posterior, not of the sampler: with ``variance="posterior"`` the step takes it from there (one number for
Analytic-DPM, a diagonal for SN and NPR); ``"beta-tilde"`` ignores it, ``"beta"`` replaces std^2 by
beta_{t|s} = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2. The last step, to the data, adds no noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from trueward.naming import check_name
from trueward.samplers.sampler import Level, Plan, Run, Sampler, Table, Transition, combine
from trueward.schedules import Schedule
from trueward.times import Levels, TimeGrid


@dataclass(frozen=True, eq=False)
class AncestralPlan(Plan):
    """Coefficients of x, mean and eps in the mean of a step, and lambda^2 and kappa of its variance."""

    of_x: Table
    of_mean: Table
    of_eps: Table
    base_variance: Table
    kappa2: Table


@dataclass(frozen=True)
class Ancestral(Sampler):
    """DDPM and its relatives (Ho et al. 2020; Song et al. 2021, eq. 12; Bao et al. 2022, eq. 6).

    Costs one network evaluation per step; the last step goes from `t_end` to the data.

    Args:
        eta: 1 is DDPM, 0 is DDIM; in between, a mixture of both.
        variance: beta-tilde, beta (eta = 1 only) or posterior (what the denoiser says in `Posterior.var`).
        clip: clamp the predicted data to the denoiser's `data_range`, if it has one.
    """

    grid: TimeGrid | str = "even"
    eta: float = 1.0
    variance: str = "beta-tilde"
    clip: bool = True

    name: ClassVar[str] = "ddpm"
    citation: ClassVar[tuple[str, ...]] = ("ho2020denoising",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("variance", self.variance, ["beta-tilde", "beta", "posterior"])
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}.")
        if self.variance == "beta" and self.eta != 1.0:
            raise ValueError(f"variance='beta' belongs to eta=1, got eta={self.eta}.")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0 or self.variance != "beta-tilde"

    def make_plan(self, schedule: Schedule) -> AncestralPlan:
        times = self.grid(schedule, self.steps - 1, self.t_start, self.t_end)  # type: ignore[operator]
        levels = Levels.of(schedule, times, clean=True)
        alpha_t, alpha_s = levels.alpha[:-1], levels.alpha[1:]
        sigma_t, sigma_s = levels.sigma[:-1], levels.sigma[1:]
        lost = -np.expm1(2.0 * (levels.half_log_snr[:-1] - levels.half_log_snr[1:]))  # 1 - SNR_t / SNR_s
        lambda2 = self.eta**2 * sigma_s**2 * lost
        direction = np.sqrt(np.maximum(sigma_s**2 - lambda2, 0.0))
        kappa = alpha_s - direction * alpha_t / sigma_t
        noisy = sigma_s > 0
        zeros = np.zeros_like(lambda2)
        if self.eta == 1.0:  # the same mean in terms of x_t: what DDPM does when the mean is clamped
            of_x, of_mean, of_eps = (alpha_t / alpha_s) * (sigma_s / sigma_t) ** 2, alpha_s * lost, zeros
        else:
            of_x, of_mean, of_eps = zeros, alpha_s, direction
        base = sigma_t**2 * lost if self.variance == "beta" else lambda2
        kappa2 = kappa**2 if self.variance == "posterior" else zeros
        return AncestralPlan(levels, *map(Table, (of_x, of_mean, of_eps, base * noisy, kappa2 * noisy)))

    def transition(self, run: Run, x: Tensor, level: Level, out: Tensor | None = None) -> Transition:
        """Mean and standard deviation of the step that leaves `level` (one network evaluation)."""
        plan: AncestralPlan = run.plan  # type: ignore[assignment]
        posterior = run.denoise(x, run.time(level))
        mean = posterior.mean
        if self.clip and run.denoiser.data_range is not None:
            mean = mean.clamp(*run.denoiser.data_range)
        if self.eta == 1.0:
            mean = combine((plan.of_mean(level, x), mean), (plan.of_x(level, x), x), out=out)
        else:
            mean = combine((plan.of_mean(level, x), mean), (plan.of_eps(level, x), posterior.eps), out=out)
        variance = plan.base_variance(level, x)
        if self.variance == "posterior":
            if posterior.var is None:
                raise ValueError(
                    "variance='posterior' needs a denoiser that knows its covariance; fit one with `trueward fit-covariance`."
                )
            variance = variance + plan.kappa2(level, x) * posterior.var
        return Transition(mean, variance.sqrt() if isinstance(variance, Tensor) else variance**0.5)

    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        mean, std = self.transition(run, x, level, out)
        if not self.stochastic:
            return mean
        if isinstance(std, float):
            return mean if std == 0.0 else mean.add_(run.normal(level + 1 if draw is None else draw, x), alpha=std)
        return mean.addcmul_(run.normal(level + 1 if draw is None else draw, x), std)


@dataclass(frozen=True)
class DDIM(Ancestral):
    """Deterministic by default (Song et al. 2021): the first-order solver of the probability-flow ODE."""

    eta: float = 0.0

    name: ClassVar[str] = "ddim"
    citation: ClassVar[tuple[str, ...]] = ("song2021denoising",)
