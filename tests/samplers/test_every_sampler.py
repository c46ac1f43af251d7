"""Every sampler under every schedule and parametrisation reaches the same closed-form truth.

One table: deterministic samplers are compared point by point with the exact probability flow, stochastic ones with exact
samples by their moments and by the maximum mean discrepancy.
"""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from trueward.denoisers import denoiser
from trueward.noise import Noise
from trueward.samplers import Sampler, sampler, sampler_names
from trueward.schedules import EDM, VE, DiscreteSchedule, Schedule, VPCosine, VPLinear
from trueward.truth import GaussianMixture

TRUTH = GaussianMixture(
    weights=[0.3, 0.5, 0.2],
    means=[[-0.8, 0.3], [0.5, 0.2], [0.1, -0.9]],
    covariances=[[[0.04, 0.01], [0.01, 0.06]], [[0.09, -0.03], [-0.03, 0.05]], [[0.02, 0.0], [0.0, 0.02]]],
)
SCHEDULES = {
    "vp-linear": VPLinear(),
    "vp-cosine": VPCosine(),
    "ve": VE(),
    "edm": EDM(0.01, 40.0),
    "ddpm-linear": DiscreteSchedule.linear(),
    "ddpm-cosine": DiscreteSchedule.cosine(),
}
PREDICTIONS = ("eps", "x0", "v", "score", "edm")
POINTS, LAW = 32, 1500
# samplers that read a fitted covariance are tested with the covariances
NAMES = [name for name in sampler_names() if not getattr(sampler(name), "reads_posterior", False)]


class Perfect(nn.Module):
    """The network that training would end at, in each parametrisation."""

    def __init__(self, schedule: Schedule, prediction: str) -> None:
        super().__init__()
        self.prediction = prediction
        self.model = TRUTH.denoiser(EDM() if prediction == "edm" else schedule)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if self.prediction != "edm":
            posterior = self.model(x, label)
            return posterior.mean if self.prediction == "x0" else getattr(posterior, self.prediction)
        s = torch.exp(4.0 * label)[:, None]  # undo the preconditioning with a data deviation of 1/2
        y = x * torch.sqrt(s**2 + 0.25)
        mean = self.model(y, s[:, 0]).mean
        return (mean - 0.25 / (s**2 + 0.25) * y) * torch.sqrt(s**2 + 0.25) / (0.5 * s)


@functools.cache
def model(schedule: str, prediction: str):
    options = {} if prediction == "edm" else {"label": lambda t: t}
    return denoiser(Perfect(SCHEDULES[schedule], prediction), SCHEDULES[schedule], prediction, shape=(2,), **options)


@functools.cache
def start(schedule: str) -> Tensor:
    noise = Noise.rows(1, POINTS).normal(0, (2,), torch.float64)
    return noise * SCHEDULES[schedule].prior_std().item()


@functools.cache
def flow(schedule: str) -> Tensor:
    """The exact end of the probability flow from `start`."""
    s = SCHEDULES[schedule]
    return TRUTH.flow(start(schedule), s, s.t_max, s.t_min)


@functools.cache
def fine(name: str) -> Sampler:
    """The sampler with so many steps that its error is small."""
    if sampler(name).nfe(VPLinear()) is None:  # adaptive: tolerances instead of steps
        return sampler(name, rtol=1e-4, atol=1e-4)
    probe = sampler(name, steps=12)
    order = 1 if probe.stochastic else getattr(probe, "order", 1)
    return sampler(name, steps={1: 300, 2: 90}.get(order, 90), grid="log-snr")


def kernel(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(-0.5 * torch.cdist(a, b) ** 2 / 0.4**2)


def assert_same_law(x: Tensor, y: Tensor) -> None:
    """Moments, and the unbiased MMD against its spread under equal laws (false alarm about 1e-4 for each)."""
    for a, b in ((x, y), (x**2, y**2), (x.prod(1, keepdim=True), y.prod(1, keepdim=True))):
        error = torch.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert (((a.mean(0) - b.mean(0)).abs() - 0.01) < 3.9 * error).all()
    n = len(x)
    k_xx, k_yy, k_xy = kernel(x, x), kernel(y, y), kernel(x, y)
    mmd2 = ((k_xx.sum() - n) + (k_yy.sum() - n)) / (n * (n - 1)) - 2 * k_xy.mean()
    h = k_xx + k_yy - k_xy - k_xy.T
    spread = math.sqrt(2.0 * (h - h.mean(0) - h.mean(1)[:, None] + h.mean()).square().mean()) / n
    assert mmd2 < 4.5 * spread + 1e-4


CASES = list(itertools.product(NAMES, SCHEDULES, PREDICTIONS))


@pytest.mark.parametrize(("name", "schedule", "prediction"), CASES, ids=["-".join(case) for case in CASES])
def test_every_sampler_reaches_the_truth(name, schedule, prediction):
    solver, d = fine(name), model(schedule, prediction)
    if solver.stochastic:
        if prediction not in ("eps", "edm"):
            one = solver.__class__(**{**vars(solver), "steps": 8})
            x_T = start(schedule)
            assert torch.allclose(one.sample(d, x_T).x, one.sample(model(schedule, "eps"), x_T).x, atol=1e-8)
            return
        x = solver.sample(d, n=LAW, dtype=torch.float64).x
        exact = TRUTH.marginal(SCHEDULES[schedule], SCHEDULES[schedule].t_min)
        assert_same_law(x, exact.sample(LAW, torch.Generator().manual_seed(0)))
        return
    x = solver.sample(d, start(schedule)).x
    end = flow(schedule)
    if solver.levels(SCHEDULES[schedule]).sigma[-1] == 0.0:  # it goes on to the data
        end = d(end, SCHEDULES[schedule].t_min).mean
    assert (x - end).abs().max() < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64(name):
    solver = fine(name) if sampler(name).nfe(VPLinear()) is None else sampler(name, steps=12)
    x_T = start("vp-linear")
    d = model("vp-linear", "v")
    high, low = solver.sample(d, x_T).x, solver.sample(d, x_T.float()).x
    assert low.dtype == torch.float32
    assert torch.allclose(low.double(), high, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_keeps_the_identity_of_samples(name):
    solver = fine(name) if sampler(name).nfe(VPLinear()) is None else sampler(name, steps=6)
    d = model("edm", "x0")
    whole = solver.sample(d, n=20, seed=9, dtype=torch.float64).x
    parts = [solver.sample(d, seed=9, indices=[i], dtype=torch.float64).x for i in range(20)]
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-12)
