"""EDM's Heun sampler against an independent transcription of its algorithm and the order it claims."""

from __future__ import annotations

import math

import pytest
import torch

from trueward.denoisers import Denoiser, Posterior
from trueward.noise import Noise
from trueward.samplers.edm import EDMHeun
from trueward.schedules import EDM, VE, DiscreteSchedule, VPLinear


class Curved(Denoiser):
    """Data +-0.7 with equal weight: E[x_0 | x_t] = 0.7 tanh(0.7 alpha x / sigma^2)."""

    def forward(self, x_t, t, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, mean=0.7 * torch.tanh(0.7 * alpha / sigma**2 * x_t))


def published(denoiser, x, sigmas, churn, low, high, s_noise, noise):
    """Algorithm 2 as printed, in VE coordinates."""
    n = len(sigmas) - 1
    x = x.clone()
    for i in range(n):
        s, s_next = sigmas[i], sigmas[i + 1]
        gamma = min(churn / n, math.sqrt(2) - 1) if low <= s <= high else 0.0
        s_hat = s * (1 + gamma)
        x_hat = x + math.sqrt(s_hat**2 - s**2) * s_noise * noise(i) if gamma else x
        d = (x_hat - denoiser(x_hat, s_hat).mean) / s_hat
        x = x_hat + (s_next - s_hat) * d
        if s_next != 0:
            d2 = (x - denoiser(x, s_next).mean) / s_next
            x = x_hat + (s_next - s_hat) * (d + d2) / 2
    return x


@pytest.mark.parametrize("churn", [0.0, 4.0, 40.0])
def test_heun_is_the_published_algorithm(churn):
    d = Curved(EDM(0.02, 20.0), shape=(2,))
    sampler = EDMHeun(9, churn=churn, churn_min=0.1, churn_max=10.0, churn_noise=1.003)
    noise = Noise.rows(3, 4)
    x_T = noise.normal(0, (2,), torch.float64) * 20
    sigmas = [float(s) for s in sampler.levels(d.schedule).sigma]
    expected = published(d, x_T, sigmas, churn, 0.1, 10.0, 1.003, lambda i: noise.normal(i + 1, (2,), torch.float64))
    got = sampler.sample(d, x_T, seed=3).x
    assert torch.allclose(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("churn", [0.0, 5.0])
def test_a_change_of_scale_changes_nothing(churn):
    # VP and VE are one process in sigma / alpha: the same levels give the same samples
    vp, ve = (
        VPLinear(),
        EDM(math.exp(-0.5 * VPLinear().log_snr(1e-3).item()), math.exp(-0.5 * VPLinear().log_snr(1.0).item())),
    )
    alpha_T, _ = vp.at(1.0)
    x_T = Noise.rows(0, 5).normal(0, (1,), torch.float64)
    a = EDMHeun(12, churn=churn).sample(Curved(vp, shape=(1,)), x_T).x
    b = EDMHeun(12, churn=churn).sample(Curved(ve, shape=(1,)), x_T / alpha_T).x
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "schedule", [VPLinear(), VE(), EDM(), DiscreteSchedule.linear()], ids=lambda s: type(s).__name__
)
def test_heun_has_second_order(schedule):
    class Gaussian(Denoiser):
        def forward(self, x_t, t, **condition):
            alpha, sigma = self.schedule.coefficients(t, x_t)
            return Posterior(x_t, alpha, sigma, mean=x_t * (0.25 * alpha / (alpha**2 * 0.25 + sigma**2)))

    d = Gaussian(schedule, shape=(1,))
    (a_T, s_T), (a_0, s_0) = schedule.at(schedule.t_max), schedule.at(schedule.t_min)
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * schedule.prior_std()
    exact = d(x_T * math.sqrt((a_0**2 * 0.25 + s_0**2) / (a_T**2 * 0.25 + s_T**2)), schedule.t_min).mean
    errors = [(EDMHeun(n).sample(d, x_T).x - exact).abs().max().item() for n in (80, 160, 320)]
    slope = math.log2(errors[1] / errors[2])
    assert slope == pytest.approx(2.0, abs=0.1)


def test_budget_is_the_largest_odd_number_that_fits():
    for nfe in range(1, 30):
        assert EDMHeun.for_budget(nfe).nfe(EDM()) == nfe - (nfe + 1) % 2


def test_churn_never_leaves_the_range_the_model_was_trained_on():
    seen = []

    class Spy(Curved):
        def forward(self, x_t, t, **condition):
            seen.append(t)
            return super().forward(x_t, t)

    EDMHeun(5, churn=100.0).sample(Spy(VPLinear(), shape=(1,)), n=1)
    assert max(seen) <= 1.0


def test_churn_reaches_the_law_of_the_data():
    # two-point data: half of the samples at each point, whatever the churn; false alarm 1e-4
    d = Curved(EDM(0.01, 20.0), shape=(1,))
    x = EDMHeun(60, churn=30.0).sample(d, n=20_000).x
    assert ((x.abs() - 0.7).abs() < 0.05).float().mean() > 0.999
    assert abs((x > 0).double().mean().item() - 0.5) < 3.9 * 0.5 / math.sqrt(20_000)
