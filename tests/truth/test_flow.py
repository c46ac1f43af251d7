"""The probability-flow map carries laws to laws, in either direction, under every schedule."""

from __future__ import annotations

import pytest
import torch
from truth_cases import SCHEDULES, TRUTHS, covariances, generator, states

from trueward.schedules import EDM, Schedule, VPLinear
from trueward.truth import Gaussian, GaussianMixture, bimodal, point_masses

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def _cdf(truth: GaussianMixture, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    std = (alpha**2 * truth.spectrum.values[:, 0] + sigma**2).sqrt()
    return (truth.weights * torch.special.ndtr((x - alpha * truth.means[:, 0]) / std)).sum(1)


@every_schedule
def test_on_the_line_the_flow_is_the_quantile_map(schedule: Schedule) -> None:
    """The flow transports p_t and cannot cross itself, so in one dimension it keeps the distribution function."""
    truth = bimodal()
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * schedule.prior_std().item()
    x = truth.flow(x_T, schedule, schedule.t_max, schedule.t_min)
    before = _cdf(truth, x_T, *schedule.at(schedule.t_max))
    after = _cdf(truth, x, *schedule.at(schedule.t_min))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-11)


def test_flow_of_the_bimodal_truth_has_the_published_end_points() -> None:
    """An independent order-8 Runge-Kutta solution in half-log-SNR, good to 3e-8."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    expected = [
        -1.08725621,
        -0.95300073,
        -0.78576977,
        -0.17544961,
        0.32972958,
        0.54442986,
        0.72482977,
        0.89235597,
        1.05363441,
    ]
    found = bimodal().flow(x_T, VPLinear(), 1.0, 1e-3)[:, 0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=3e-8)


@every_schedule
def test_closed_form_and_integration_agree_on_a_gaussian(schedule: Schedule) -> None:
    """Two equal components take the integrator's way, one takes the formula's."""
    mean, covariance = torch.tensor([0.4, -1.0]), covariances(1, 2, 3)[0]
    one = Gaussian(mean, covariance)
    two = GaussianMixture([0.5, 0.5], mean.expand(2, 2), covariance.expand(2, 2, 2))
    x = torch.randn(5, 2, dtype=torch.float64, generator=generator()) * schedule.prior_std().item()
    start, end = schedule.t_max, schedule.t_min
    torch.testing.assert_close(
        one.flow(x, schedule, start, end), two.flow(x, schedule, start, end), rtol=1e-10, atol=1e-11
    )


@pytest.mark.parametrize("name", ["isotropic", "diagonal", "full", "gaussian"])
def test_there_and_back_again(name: str) -> None:
    truth, schedule = TRUTHS[name], VPLinear()
    x = states(truth, schedule, 0.01)
    there = truth.flow(x, schedule, 0.01, 1.0)
    torch.testing.assert_close(truth.flow(there, schedule, 1.0, 0.01), x, rtol=1e-9, atol=1e-10)
    through = truth.flow(truth.flow(there, schedule, 1.0, 0.4), schedule, 0.4, 0.01)
    torch.testing.assert_close(through, x, rtol=1e-9, atol=1e-10)


def test_flow_solves_the_ode_of_its_schedule() -> None:
    """dx/dt = f x - g^2 score / 2, by central differences in t."""
    truth, schedule, t, h = TRUTHS["full"], VPLinear(), 0.35, 1e-5
    x = states(truth, schedule, t)
    ahead, behind = truth.flow(x, schedule, t, t + h), truth.flow(x, schedule, t, t - h)
    slope = schedule.drift(t) * x - 0.5 * schedule.diffusion(t) ** 2 * truth.score(x, schedule, t)
    torch.testing.assert_close((ahead - behind) / (2 * h), slope, rtol=1e-6, atol=1e-6)


def test_flow_carries_the_marginal_at_the_start_to_the_marginal_at_the_end() -> None:
    """log p_e(flow(x)) + log |det| = log p_s(x): change of variables with the Jacobian by differences."""
    truth, schedule, s, e, h = TRUTHS["isotropic"], VPLinear(), 0.6, 0.2, 1e-5
    x = states(truth, schedule, s, n=1)
    steps = torch.eye(4, dtype=torch.float64).view(4, 2, 2) * h
    jacobian = ((truth.flow(x + steps, schedule, s, e) - truth.flow(x - steps, schedule, s, e)) / (2 * h)).view(4, 4)
    change = torch.linalg.slogdet(jacobian).logabsdet
    after = truth.log_prob_t(truth.flow(x, schedule, s, e), schedule, e)
    torch.testing.assert_close(after + change, truth.log_prob_t(x, schedule, s), rtol=0, atol=1e-6)


def test_every_row_of_a_large_batch_is_carried_as_if_alone() -> None:
    truth, schedule = bimodal(), EDM()
    x = torch.linspace(-150, 150, 300, dtype=torch.float64)[:, None]
    together = truth.flow(x, schedule, 80.0, 0.002)
    alone = torch.cat([truth.flow(x[i : i + 1], schedule, 80.0, 0.002) for i in (0, 77, 150, 299)])
    torch.testing.assert_close(together[[0, 77, 150, 299]], alone, rtol=0, atol=1e-11)


def test_flow_of_point_masses_ends_at_the_points() -> None:
    truth = point_masses([[1.0], [-1.0]])
    x = truth.flow(torch.tensor([[3.0], [-60.0], [80.0]], dtype=torch.float64), EDM(), 80.0, 0.002)
    torch.testing.assert_close(x, torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64), rtol=0, atol=0.01)


def test_flow_of_a_mixture_to_no_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise at both ends"):
        bimodal().flow(torch.zeros(1, 1), VPLinear(), 1.0, 0.0)
