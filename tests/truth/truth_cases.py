"""Truths and schedules that the tests of `trueward.truth` go through."""

from __future__ import annotations

import torch
from torch import Tensor

from trueward.schedules import EDM, VE, DiscreteSchedule, Schedule, VPCosine, VPLinear
from trueward.truth import Gaussian, GaussianMixture, bimodal

SCHEDULES: dict[str, Schedule] = {
    "vp-linear": VPLinear(),
    "vp-cosine": VPCosine(),
    "ve": VE(),
    "edm": EDM(),
    "discrete": DiscreteSchedule.linear(),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariances(count: int, size: int, seed: int) -> Tensor:
    """Well-conditioned full covariances with correlations far from zero."""
    factor = torch.randn(count, size, size, dtype=torch.float64, generator=generator(seed))
    return factor @ factor.transpose(1, 2) / size + 0.05 * torch.eye(size, dtype=torch.float64)


def _mixture(kind: str) -> GaussianMixture:
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    means = torch.randn(3, 2, 2, dtype=torch.float64, generator=generator(1))
    if kind == "isotropic":
        return GaussianMixture(weights, means, torch.tensor([0.04, 0.3, 1.1]))
    if kind == "diagonal":
        return GaussianMixture(weights, means, 0.05 + torch.rand(3, 2, 2, generator=generator(2)))
    return GaussianMixture(weights, means, covariances(3, 4, seed=3))


TRUTHS: dict[str, GaussianMixture] = {
    "bimodal": bimodal(),
    "isotropic": _mixture("isotropic"),
    "diagonal": _mixture("diagonal"),
    "full": _mixture("full"),
    "gaussian": Gaussian(torch.tensor([[0.3, -1.0]]), covariances(1, 2, seed=4)[0]),
}


def full_covariances(truth: GaussianMixture) -> Tensor:
    """(K, d, d), by the definition."""
    return torch.stack([truth.spectrum.matrix(k, truth.spectrum.values[k]) for k in range(truth.components)])


def reference(truth: GaussianMixture, alpha: float, sigma: float) -> torch.distributions.MixtureSameFamily:
    """The law of alpha x_0 + sigma eps, flattened, by torch.distributions."""
    eye = torch.eye(truth.spectrum.size, dtype=torch.float64)
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(truth.weights),
        torch.distributions.MultivariateNormal(
            alpha * truth.means.reshape(truth.components, -1), alpha**2 * full_covariances(truth) + sigma**2 * eye
        ),
    )


def states(truth: GaussianMixture, schedule: Schedule, t: float, n: int = 6) -> Tensor:
    """Draws of x_t."""
    alpha, sigma = schedule.at(t)
    x_0 = truth.sample(n, generator(5))
    return alpha * x_0 + sigma * torch.randn(x_0.shape, dtype=torch.float64, generator=generator(6))


def times(schedule: Schedule) -> list[float]:
    """The two ends and two levels between them, evenly spread in log-SNR."""
    log_snr = [schedule.log_snr(t).item() for t in (schedule.t_max, schedule.t_min)]
    between = [schedule.time_of_log_snr(log_snr[0] + f * (log_snr[1] - log_snr[0])).item() for f in (0.35, 0.7)]
    return [schedule.t_max, *between, schedule.t_min]
