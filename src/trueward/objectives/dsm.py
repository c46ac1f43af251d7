r"""Denoising score matching: how far the denoiser's answer is from what was there,

    loss = w(t) || mean(x_t, t) - x_0 ||^2 / d

for x_t = alpha x_0 + sigma eps. Since alpha (mean - x_0) = sigma (eps - eps_hat) and v - v_hat = (alpha^2 + sigma^2)/sigma
(mean - x_0) up to sign, every usual loss is this one with another weight. With s = sigma/alpha,

    weighting     loss                                     w(t)
    x0            ||x_0 - mean||^2 / d                     1
    eps           ||eps - eps_hat||^2 / d                  1 / s^2
    v             ||v - v_hat||^2 / d                      ((alpha^2 + sigma^2) / sigma)^2
    edm           (Karras et al. 2022)                     (s^2 + sd^2) / (s sd)^2
    likelihood    g^2/(2 sigma^2) ||eps - eps_hat||^2 / p(t)     d g^2 / (2 sigma^2 s^2 p(t))

The last one is the sum, not the mean, over the d dimensions: its expectation is half the integral over time of g^2 times the
squared error of the score, which bounds the negative log-likelihood in nats up to a constant (Song et al. 2021b, theorem 1),
whatever the time sampler. The difference is taken in the view in which the model predicts, so that none of the others'
divisions by a small sigma or alpha costs digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trueward.denoisers import Denoiser, Posterior
from trueward.naming import check_name
from trueward.objectives.objective import Batch, Noisy, Objective, add_noise
from trueward.objectives.times import TimeSampler, default_times, time_sampler
from trueward.schedules import Schedule

WEIGHTINGS = ("edm", "eps", "x0", "v", "likelihood")


def data_weight(
    weighting: str, t: Tensor, schedule: Schedule, sigma_data: float, dimensions: int, density: Tensor
) -> Tensor:
    """w(t) of the table above, (batch,) float64: the weight of the mean squared error of the data prediction."""
    s2 = torch.exp(-schedule.log_snr(t))
    if weighting == "x0":
        return torch.ones_like(s2)
    if weighting == "eps":
        return 1.0 / s2
    if weighting == "v":
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return ((alpha**2 + sigma**2) / sigma) ** 2
    if weighting == "edm":
        return 1.0 / s2 + 1.0 / sigma_data**2
    rate = torch.exp(2.0 * (torch.log(schedule.diffusion(t)) - schedule.log_sigma(t)))  # g^2 / sigma^2
    return 0.5 * dimensions * rate / (s2 * density)


def squared_error(
    posterior: Posterior, noisy: Noisy, schedule: Schedule, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean squared error in the view the model predicts in, and its factor: error * factor = ||mean - x_0||^2 / d.

    Args:
        posterior: the model's answer for ``noisy.x_t``.
        noisy: the batch it was asked about.
        schedule: of the model.
        shift: (batch, *shape), added to the target x_0, in data units (a correction of the posterior mean), or None.

    Returns:
        (batch,) in the dtype of the data, and (batch,) float64.
    """
    native = posterior.native
    alpha, sigma = schedule.alpha(noisy.t), schedule.sigma(noisy.t)
    if native == "eps":
        target, factor = noisy.eps, torch.exp(-schedule.log_snr(noisy.t))
    elif native == "v":
        a, s = schedule.coefficients(noisy.t, noisy.x_0)
        target, factor = a * noisy.eps - s * noisy.x_0, (sigma / (alpha**2 + sigma**2)) ** 2
    else:
        target, factor = noisy.x_0, torch.ones_like(alpha)
    answer: Tensor = getattr(posterior, native)
    if shift is not None:
        # the target of the mean moves by `shift`, that of eps and v by the slope of that view in the mean
        slope = {"mean": torch.ones_like(alpha), "eps": -alpha / sigma, "v": -(alpha**2 + sigma**2) / sigma}[native]
        target = target + slope.to(target.dtype).view(-1, *[1] * (target.ndim - 1)) * shift
    return (answer - target).square().flatten(1).mean(1), factor


@dataclass(frozen=True)
class DSM(Objective):
    """Denoising score matching (Vincent 2011; Ho et al. 2020; Karras et al. 2022).

    Args:
        weighting: edm, eps, x0, v or likelihood; see the module.
        times: distribution of the training times, or its name; default: the one that goes with the schedule.
        label_dropout: probability of training a row without its class, which classifier-free guidance needs.
        sigma_data: standard deviation of the data, for the edm weight; default: the denoiser's, else 0.5.

    Raises:
        ValueError: on an unknown weighting, or a dropout outside [0, 1].
    """

    weighting: str = "edm"
    times: TimeSampler | str | None = None
    label_dropout: float = 0.1
    sigma_data: float | None = None
    citation: ClassVar[tuple[str, ...]] = ("vincent2011connection", "ho2020denoising", "karras2022elucidating")

    def __post_init__(self) -> None:
        check_name("weighting", self.weighting, WEIGHTINGS)
        if self.times is not None:
            object.__setattr__(self, "times", time_sampler(self.times))
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ValueError(f"label_dropout must lie in [0, 1], got {self.label_dropout}.")
        if self.sigma_data is not None and not (math.isfinite(self.sigma_data) and self.sigma_data > 0):
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}.")

    def times_of(self, schedule: Schedule) -> TimeSampler:
        """The time sampler used on this schedule."""
        return default_times(schedule) if self.times is None else time_sampler(self.times)

    def weigh(self, error: Tensor, factor: Tensor, noisy: Noisy, denoiser: Denoiser) -> Tensor:
        """error * factor, the squared error of the data prediction, times w(t): (batch,) losses."""
        sigma_data = getattr(denoiser, "sigma_data", 0.5) if self.sigma_data is None else self.sigma_data
        dimensions = noisy.x_0[0].numel()
        w = data_weight(self.weighting, noisy.t, denoiser.schedule, float(sigma_data), dimensions, noisy.density)
        return error * (w * factor).to(error.device, error.dtype)

    def __call__(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        noisy = add_noise(denoiser, batch, generator, self.times_of(denoiser.schedule), self.label_dropout)
        posterior = denoiser(noisy.x_t, noisy.t, **noisy.condition)
        return self.weigh(*squared_error(posterior, noisy, denoiser.schedule), noisy, denoiser)

    def to_config(self) -> dict[str, Any]:
        return {
            "objective": "DSM",
            "weighting": self.weighting,
            "times": self.times.to_config() if isinstance(self.times, TimeSampler) else None,
            "label_dropout": self.label_dropout,
            "sigma_data": self.sigma_data,
        }
