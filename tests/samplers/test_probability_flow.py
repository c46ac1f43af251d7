"""The adaptive ODE against closed-form flows."""

from __future__ import annotations

import math

import pytest
import torch

from trueward.denoisers import Denoiser, Posterior
from trueward.noise import Noise
from trueward.samplers.probability_flow import _A, _C, _E, ProbabilityFlow
from trueward.schedules import EDM, VE, DiscreteSchedule, VPCosine, VPLinear

SCHEDULES = [VPLinear(), VPCosine(), VE(), EDM(), DiscreteSchedule.linear()]


class Gaussian(Denoiser):
    """Exact for data N(0.4, diag(0.25, 0.01))."""

    def forward(self, x_t, t, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        c2 = torch.tensor([0.25, 0.01], dtype=x_t.dtype)
        return Posterior(x_t, alpha, sigma, mean=0.4 + c2 * alpha / (alpha**2 * c2 + sigma**2) * (x_t - alpha * 0.4))

    def flow(self, x, start, end):
        (a, s), (b, r) = self.schedule.at(start), self.schedule.at(end)
        c2 = torch.tensor([0.25, 0.01], dtype=x.dtype)
        return 0.4 * b + torch.sqrt((b**2 * c2 + r**2) / (a**2 * c2 + s**2)) * (x - 0.4 * a)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_flow_of_a_gaussian_is_exact_to_tolerance(schedule):
    d = Gaussian(schedule, shape=(2,))
    x_T = Noise.rows(0, 9).normal(0, (2,), torch.float64) * schedule.prior_std()
    exact = d.flow(x_T, schedule.t_max, schedule.t_min)
    errors, calls = [], []
    for tolerance in (1e-3, 1e-6, 1e-9):
        result = ProbabilityFlow(rtol=tolerance, atol=tolerance).sample(d, x_T)
        errors.append((result.x - exact).abs().max().item())
        calls.append(result.nfe)
    assert errors[0] < 0.05
    assert errors[1] < 1e-4
    assert errors[2] < 1e-7
    assert calls == sorted(calls)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_inversion_returns_to_the_latent(schedule):
    d = Gaussian(schedule, shape=(2,))
    solver = ProbabilityFlow(rtol=1e-9, atol=1e-9)
    x_0 = torch.tensor([[0.1, 0.45], [0.9, 0.3]], dtype=torch.float64)
    latent = solver.invert(d, x_0)
    assert torch.allclose(latent.x, d.flow(x_0, schedule.t_min, schedule.t_max), rtol=1e-6)
    assert torch.allclose(solver.sample(d, latent.x).x, x_0, atol=1e-7)


def test_the_tableau_satisfies_the_order_conditions():
    b = [*list(_A[6]), 0.0]
    for power in range(5):
        assert sum(w * c**power for w, c in zip(b, _C)) == pytest.approx(1 / (power + 1), abs=1e-14)
    for row, c in zip(_A, _C):
        assert sum(row) == pytest.approx(c, abs=1e-14)
    # the error weights vanish on polynomials up to degree three and not on degree four
    for power in range(4):
        assert sum(e * c**power for e, c in zip(_E, _C)) == pytest.approx(0.0, abs=1e-14)
    assert abs(sum(e * c**4 for e, c in zip(_E, _C))) > 1e-4


def test_denoising_adds_one_call_and_gives_the_posterior_mean():
    d = Gaussian(VPLinear(), shape=(2,))
    plain = ProbabilityFlow().sample(d, n=3, dtype=torch.float64)
    denoised = ProbabilityFlow(denoise_to_zero=True).sample(d, n=3, dtype=torch.float64)
    assert denoised.nfe == plain.nfe + 1
    assert torch.allclose(denoised.x, d(plain.x, 1e-3).mean)


def test_accepted_steps_cost_six_evaluations():
    d = Gaussian(EDM(), shape=(2,))
    result = ProbabilityFlow().sample(d, n=1)
    assert result.nfe == 1 + 6 * (result.accepted + result.rejected)


def test_rows_arrive_in_their_own_time():
    # a row that starts in the far tail needs other steps; its neighbour must not notice
    d = Gaussian(VE(), shape=(2,))
    x_T = torch.tensor([[50.0, -20.0], [4000.0, 10.0]], dtype=torch.float64)
    both = ProbabilityFlow().sample(d, x_T, trajectory=True)
    assert torch.equal(both.x[0], ProbabilityFlow().sample(d, x_T[:1]).x[0])
    assert torch.allclose(both.x, d.flow(x_T, 1.0, 0.0), rtol=1e-4, atol=1e-3)
    assert not math.isnan(both.trajectory[3].sum().item())
