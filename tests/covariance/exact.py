"""Models whose every moment is known, in one dimension or on vectors, for the checks of this room."""

from __future__ import annotations

import numpy as np
import torch

from trueward.denoisers import Denoiser, Posterior
from trueward.schedules import DiscreteSchedule

LINEAR = DiscreteSchedule.linear()


def grid_of(count=200_001, width=9.0):
    """A dense uniform grid of standard normals with weights that sum to one."""
    z = np.linspace(-width, width, count)
    w = np.exp(-0.5 * z * z)
    return z, w / w.sum()


class TwoPoints(Denoiser):
    """x_0 = +-1 with probability 1/2; eps is scaled by `c` (1 is exact)."""

    def __init__(self, schedule=LINEAR, c=1.0, data_range=(-1.0, 1.0)):
        super().__init__(schedule, shape=(1,), data_range=data_range)
        self.c = c

    @property
    def dtype(self):
        return torch.float64

    def forward(self, x_t, t, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        m = torch.tanh(alpha * x_t / sigma**2)
        return Posterior(x_t, alpha, sigma, eps=self.c * (x_t - alpha * m) / sigma)


class IsotropicGaussian(Denoiser):
    """x_0 ~ N(0, c2 I); `var` is the exact posterior variance if asked for."""

    def __init__(self, schedule=LINEAR, c2=0.25, shape=(1,), data_range=None, knows=False):
        super().__init__(schedule, shape=shape, data_range=data_range)
        self.c2, self.knows = c2, knows

    @property
    def dtype(self):
        return torch.float64

    def forward(self, x_t, t, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        norm = alpha**2 * self.c2 + sigma**2
        var = self.c2 * sigma**2 / norm if self.knows else None
        return Posterior(x_t, alpha, sigma, mean=x_t * (self.c2 * alpha / norm), var=var)


def node(n):
    """The time of the node n = 1 ... 1000 of the specification."""
    return n / LINEAR.nodes


def two_points(n, x):
    """(m, V, E[eps|x], E[eps^2|x]) of two-point data at node n."""
    alpha, sigma = LINEAR.at(node(n))
    m = np.tanh(alpha * x / sigma**2)
    v = 1.0 - m**2
    e = (x - alpha * m) / sigma
    return m, v, e, e**2 + (alpha / sigma) ** 2 * v


def two_point_law(n, count=200_001):
    """Points x and weights of the law of x_n: by symmetry, x_n given x_0 = 1 serves for even functions."""
    z, w = grid_of(count)
    alpha, sigma = LINEAR.at(node(n))
    return alpha + sigma * z, w


def two_point_gamma(n, count=200_001):
    x, w = two_point_law(n, count)
    return float((w * two_points(n, x)[2] ** 2).sum())


WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.8, 0.5]), np.array([0.1, 0.2])


def mixture_gamma(n):
    """gamma of 0.3 N(-0.8, 0.01) + 0.7 N(0.5, 0.04) at node n, by quadrature."""
    alpha, sigma = LINEAR.at(node(n))
    z, w = grid_of(20_001)
    total = 0.0
    spread = np.sqrt(alpha**2 * STDS**2 + sigma**2)
    for weight, mean, std in zip(WEIGHTS, MEANS, spread):
        x = alpha * mean + std * z
        density = [p / s * np.exp(-0.5 * ((x - alpha * m) / s) ** 2) for p, m, s in zip(WEIGHTS, MEANS, spread)]
        score = sum(-(x - alpha * m) / s**2 * d for m, s, d in zip(MEANS, spread, density)) / sum(density)
        total += weight * float((w * score**2).sum())
    return sigma**2 * total
