"""What the tests of the DPM-Solvers share: closed-form truths, simple models, and the measure of convergence."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from trueward.denoisers import Denoiser, Posterior
from trueward.schedules import Schedule, VPLinear
from trueward.truth import Gaussian, GaussianMixture

LINEAR = VPLinear()
T_END = 1e-3
MIXTURE = GaussianMixture([0.3, 0.7], [[-0.8], [0.5]], [0.04, 0.09])


def column(*values: float) -> Tensor:
    """A batch of one-dimensional samples."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def spread(low: float, high: float, n: int = 9) -> Tensor:
    """Evenly spaced one-dimensional samples."""
    return torch.linspace(low, high, n, dtype=torch.float64)[:, None]


LATENTS = spread(-2.0, 2.0)  # where the nine trajectories of the mixture start
DATA = spread(-1.2, 1.0)  # where the nine inverted trajectories start


def time_of(half_log_snr: float, schedule: Schedule = LINEAR) -> float:
    """The time of a lambda."""
    return schedule.time_of_log_snr(2.0 * half_log_snr).item()


def errors(make: Callable, steps: Iterable[int], truth: GaussianMixture = MIXTURE, x_T: Tensor = LATENTS) -> np.ndarray:
    """The largest error over the samples, for samplers `make(n)` of several numbers of steps."""
    model, exact = truth.denoiser(LINEAR), truth.flow(x_T, LINEAR, 1.0, T_END)
    return np.array([(make(n).sample(model, x_T).x - exact).abs().max().item() for n in steps])


def slopes(error: np.ndarray) -> np.ndarray:
    """The measured orders between halvings of the step."""
    return np.log2(error[:-1] / error[1:])


class OfTime(Denoiser):
    """A model that answers a function of lambda alone, as eps or as x_0 (which the solvers then integrate)."""

    def __init__(self, function: Callable[[Tensor], Tensor], form: str, schedule: Schedule = LINEAR) -> None:
        super().__init__(schedule)
        self.function, self.form = function, form

    def forward(self, x_t, t, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        value = self.function(0.5 * self.schedule.log_snr(t)).to(x_t.dtype)
        value = (value.view((-1,) + (1,) * (x_t.ndim - 1)) if value.ndim else value).expand(x_t.shape)
        return Posterior(x_t, alpha, sigma, **{"eps" if self.form == "noise" else "mean": value})


class Counting(Denoiser):
    """Counts the calls of another denoiser and remembers the times and the numbers of rows it was asked for."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.schedule, shape=inner.shape, data_range=inner.data_range, num_classes=inner.num_classes)
        self.inner, self.calls, self.times, self.rows = inner, 0, [], []

    @property
    def dtype(self):
        return self.inner.dtype

    def forward(self, x_t, t, **condition):
        self.calls += 1
        self.times.append(t)
        self.rows.append(x_t.shape[0])
        return self.inner(x_t, t, **condition)


def gaussian(mean: float, variance: float) -> Gaussian:
    """A one-dimensional Gaussian truth."""
    return Gaussian([mean], [variance])
