r"""Ancestral sampling and the DDIM family: one Gaussian step from level t to level s < t,

    lambda^2 = eta^2 beta~,   beta~ = sigma_s^2 (1 - SNR_t / SNR_s)
    x_s      = alpha_s mean + sqrt(sigma_s^2 - lambda^2) eps + std noise
    std^2    = lambda^2 + kappa^2 var,   kappa = alpha_s - sqrt(sigma_s^2 - lambda^2) alpha_t / sigma_t

where `mean`, `eps` and `var` are the posterior's (:mod:`trueward.samplers.reverse_step`). eta = 1 is DDPM, eta = 0 is DDIM.
The variance of x_0 given x_t is a property of the posterior, not of the sampler: with ``variance="posterior"`` the step takes
it from there (one number for Analytic-DPM, a diagonal for SN and NPR, a matrix for data of few dimensions); ``"beta-tilde"``
ignores it, ``"beta"`` replaces std^2 by beta_{t|s} = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2. The last step, to the data,
adds no noise, and the noise of the last noisy step is kept from being seen: E|std noise| is at most `clip_pixel` grey levels,

    std <= clip_pixel (b - a) / (L - 1) sqrt(pi / 2)        for L grey levels on [a, b].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from trueward.denoisers import Denoiser
from trueward.full_covariance import FullCovariance
from trueward.naming import check_name
from trueward.noise import Noise
from trueward.samplers.plan import Level, Plan, Table, combine
from trueward.samplers.reverse_step import ReverseSteps
from trueward.samplers.run import Run, Transition
from trueward.samplers.sampler import Sampler
from trueward.schedules import Schedule
from trueward.times import Levels, TimeGrid

GUESSED = ("beta-tilde", "beta")
COVARIANCES = ("analytic", "analytic-residual", "analytic-full", "sn", "npr", "npr-full")


def pixel_variance(pixels: float, data_range: tuple[float, float], levels: int = 256) -> float:
    """The variance v of Gaussian noise with E|noise| = `pixels` grey levels: v = (pixels (b - a) / (L - 1))^2 pi / 2.

    Args:
        pixels: expected absolute change of one channel, in grey levels.
        data_range: (a, b), the values of the darkest and the brightest level.
        levels: L, how many levels there are.
    """
    return (pixels * (data_range[1] - data_range[0]) / (levels - 1)) ** 2 * (0.5 * math.pi)


@dataclass(frozen=True, eq=False)
class AncestralPlan(Plan):
    """Coefficients of x, mean and eps in the mean of a step; lambda^2 and kappa^2 of its variance; where it is clipped."""

    of_x: Table
    of_mean: Table
    of_eps: Table
    base_variance: Table
    kappa2: Table
    clipped: Table


@dataclass(frozen=True)
class Ancestral(Sampler):
    """DDPM and its relatives (Ho et al. 2020; Song et al. 2021, eq. 12; Bao et al. 2022, eq. 6).

    Costs one network evaluation per step; the last step goes from `t_end` to the data.

    Args:
        eta: 1 is DDPM, 0 is DDIM; in between, a mixture of both.
        variance: beta-tilde, beta (eta = 1 only), or posterior: what the denoiser says in `Posterior.var`. The names of the
            covariances (analytic, analytic-residual, analytic-full, sn, npr, npr-full) are posterior too, and refuse a
            denoiser whose covariance is another one; :func:`trueward.covariance.with_covariance` makes the right one.
        clip: clamp the predicted data to the denoiser's `data_range`, if it has one.
        clip_pixel: largest expected change, in grey levels, that the noise of the last noisy steps may make. The published
            choices are 1, and 2 for eta = 1 on the linear table of DDPM. Only where the denoiser has a `data_range`, and
            never with beta-tilde.
        clip_sigma_steps: how many of the last noisy steps are clipped so; 0 for none.
        clip_levels: number of grey levels of the data.
    """

    grid: TimeGrid | str = "even"
    eta: float = 1.0
    variance: str = "beta-tilde"
    clip: bool = True
    clip_pixel: float = 1.0
    clip_sigma_steps: int = 1
    clip_levels: int = 256

    name: ClassVar[str] = "ddpm"
    citation: ClassVar[tuple[str, ...]] = ("ho2020denoising",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("variance", self.variance, [*GUESSED, "posterior", *COVARIANCES])
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}.")
        if self.variance == "beta" and self.eta != 1.0:
            raise ValueError(f"variance='beta' belongs to eta=1, got eta={self.eta}.")
        if not (math.isfinite(self.clip_pixel) and self.clip_pixel > 0):
            raise ValueError(f"clip_pixel must be a positive number of grey levels, got {self.clip_pixel}.")
        if not isinstance(self.clip_sigma_steps, int) or self.clip_sigma_steps < 0:
            raise ValueError(f"clip_sigma_steps must be a whole number >= 0, got {self.clip_sigma_steps!r}.")
        if not isinstance(self.clip_levels, int) or self.clip_levels < 2:
            raise ValueError(f"clip_levels must be a whole number >= 2, got {self.clip_levels!r}.")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0 or self.variance != "beta-tilde"

    def draws_noise(self, schedule: Schedule, level: int) -> bool:
        return self.stochastic and level < self.steps - 1

    @property
    def reads_posterior(self) -> bool:
        """True if the variance comes from `Posterior.var`."""
        return self.variance not in GUESSED

    def make_plan(self, schedule: Schedule) -> AncestralPlan:
        times = self.grid(schedule, self.steps - 1, self.t_start, self.t_end)  # type: ignore[operator]
        levels = Levels.of(schedule, times, clean=True)
        step = ReverseSteps.along(levels, self.eta)
        noisy, zeros = step.sigma_s > 0, np.zeros(len(levels) - 1)
        if self.eta == 1.0:  # the same mean in terms of x_t: what DDPM does when the mean is clamped
            of_x = (step.alpha_t / step.alpha_s) * (step.sigma_s / step.sigma_t) ** 2
            of_mean, of_eps = step.alpha_s * step.lost, zeros
        else:
            of_x, of_mean, of_eps = zeros, step.alpha_s, step.direction
        base = step.beta if self.variance == "beta" else step.lambda2
        kappa2 = step.kappa**2 if self.reads_posterior else zeros
        clipped = np.arange(len(noisy)) >= len(noisy) - 1 - self.clip_sigma_steps
        if self.variance == "beta-tilde":
            clipped = clipped & False
        return AncestralPlan(
            levels, *map(Table, (of_x, of_mean, of_eps, base * noisy, kappa2 * noisy, 1.0 * (clipped & noisy)))
        )

    def start(self, denoiser: Denoiser, noise: Noise | None = None, **condition: object) -> Run:
        kind = getattr(denoiser, "covariance_kind", None)
        if self.variance in COVARIANCES and kind != self.variance:
            known = "knows no covariance" if kind is None else f"knows the covariance {kind!r}"
            raise ValueError(
                f"variance={self.variance!r}, but the denoiser {known}; use trueward.covariance.with_covariance(denoiser, "
                f"{self.variance!r}) after fitting it with `trueward fit-covariance`."
            )
        return super().start(denoiser, noise, **condition)

    def transition(self, run: Run, x: Tensor, level: Level, out: Tensor | None = None) -> Transition:
        """Mean and standard deviation of the step that leaves `level` (one network evaluation).

        The standard deviation is a :class:`~trueward.full_covariance.FullCovariance` where the posterior holds a matrix.
        """
        plan: AncestralPlan = run.plan  # type: ignore[assignment]
        posterior = run.denoise(x, run.time(level))
        mean = posterior.mean
        if self.clip and run.denoiser.data_range is not None:
            mean = mean.clamp(*run.denoiser.data_range)
        if self.eta == 1.0:
            mean = combine((plan.of_mean(level, x), mean), (plan.of_x(level, x), x), out=out)
        else:
            mean = combine((plan.of_mean(level, x), mean), (plan.of_eps(level, x), posterior.eps), out=out)
        variance: float | Tensor | FullCovariance = plan.base_variance(level, x)
        if self.reads_posterior:
            if posterior.var is None:
                raise ValueError(
                    f"variance={self.variance!r} needs a denoiser that knows its covariance; fit one with `trueward fit-covariance`."
                )
            variance = posterior.var * plan.kappa2(level, x) + variance
        if run.denoiser.data_range is not None:
            limit = pixel_variance(self.clip_pixel, run.denoiser.data_range, self.clip_levels)
            variance = _limited(variance, limit, plan.clipped, level, x)
        return Transition(mean, variance**0.5 if isinstance(variance, float) else variance.sqrt())  # type: ignore[arg-type]

    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        mean, std = self.transition(run, x, level, out)
        last = isinstance(level, int) and level == run.plan.steps - 1
        if not self.stochastic or last or (isinstance(std, float) and std == 0.0):
            return mean
        noise = run.normal(level + 1 if draw is None else draw, x)
        if isinstance(std, FullCovariance):
            return mean.add_(std @ noise)
        return mean.add_(noise, alpha=std) if isinstance(std, float) else mean.addcmul_(noise, std)


def _limited(
    variance: float | Tensor | FullCovariance, limit: float, clipped: Table, level: Level, x: Tensor
) -> float | Tensor | FullCovariance:
    """`variance`, at most `limit` at the levels where `clipped` is 1."""
    if isinstance(level, int):
        if clipped.values[level] == 0.0:
            return variance
        return min(variance, limit) if isinstance(variance, float) else variance.clamp(max=limit)
    if not any(clipped.values):
        return variance
    applies = clipped(level, x)
    assert isinstance(applies, Tensor)
    return variance.clamp(max=torch.full_like(applies, math.inf).masked_fill_(applies > 0, limit))  # type: ignore[union-attr]


@dataclass(frozen=True)
class DDIM(Ancestral):
    """Deterministic by default (Song et al. 2021): the first-order solver of the probability-flow ODE."""

    eta: float = 0.0

    name: ClassVar[str] = "ddim"
    order: ClassVar[int] = 1
    citation: ClassVar[tuple[str, ...]] = ("song2021denoising",)
