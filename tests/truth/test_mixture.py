"""Exact answers are exact: against torch.distributions, autograd, quadrature, Tweedie's identities and the tower property."""

from __future__ import annotations

import math

import pytest
import torch
from truth_cases import SCHEDULES, TRUTHS, full_covariances, generator, reference, states, times

from trueward.schedules import EDM, Schedule, VPLinear
from trueward.truth import Gaussian, GaussianMixture, bimodal, grid_of_gaussians, point_masses

every_truth = pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS.keys())
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@every_truth
@every_schedule
def test_density_at_every_time_is_that_of_torch_distributions(truth: GaussianMixture, schedule: Schedule) -> None:
    for t in times(schedule):
        x = states(truth, schedule, t)
        expected = reference(truth, *schedule.at(t)).log_prob(x.flatten(1))
        torch.testing.assert_close(truth.log_prob_t(x, schedule, t), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(truth.marginal(schedule, t).log_prob(x), expected, rtol=1e-9, atol=1e-9)


@every_truth
def test_density_of_the_data_is_that_of_torch_distributions(truth: GaussianMixture) -> None:
    x = truth.sample(7, generator())
    torch.testing.assert_close(truth.log_prob(x), reference(truth, 1.0, 0.0).log_prob(x.flatten(1)))


@every_truth
@every_schedule
def test_score_is_the_gradient_of_the_log_density(truth: GaussianMixture, schedule: Schedule) -> None:
    for t in times(schedule):
        x = states(truth, schedule, t).requires_grad_()
        (gradient,) = torch.autograd.grad(truth.log_prob_t(x, schedule, t).sum(), x)
        torch.testing.assert_close(truth.score(x.detach(), schedule, t), gradient, rtol=1e-8, atol=1e-8)


@every_truth
@every_schedule
def test_posterior_mean_and_covariance_obey_tweedie(truth: GaussianMixture, schedule: Schedule) -> None:
    """alpha mean = x + sigma^2 score and alpha^2 Cov = sigma^2 (I + sigma^2 Hessian): derivatives of the density alone."""
    for t in times(schedule)[:-1]:  # at the last level sigma^2 Hessian is -1 to many digits and the identity loses them
        alpha, sigma = schedule.at(t)
        x = states(truth, schedule, t, n=3)
        size = truth.spectrum.size
        mean = (x + sigma**2 * truth.score(x, schedule, t)) / alpha
        torch.testing.assert_close(truth.posterior_mean(x, schedule, t), mean, rtol=1e-9, atol=1e-9)
        for i, row in enumerate(x):
            hessian = torch.autograd.functional.hessian(
                lambda y, t=t: truth.log_prob_t(y[None], schedule, t).sum(), row
            )
            expected = (sigma / alpha) ** 2 * (
                torch.eye(size, dtype=torch.float64) + sigma**2 * hessian.view(size, size)
            )
            found = truth.posterior_covariance(x[i : i + 1], schedule, t)[0]
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9 * max(1.0, (sigma / alpha) ** 2))


@every_truth
@every_schedule
def test_diagonal_covariance_is_the_diagonal_of_the_full_one(truth: GaussianMixture, schedule: Schedule) -> None:
    for t in times(schedule):
        x = states(truth, schedule, t)
        full = truth.posterior_covariance(x, schedule, t).diagonal(dim1=1, dim2=2).reshape(x.shape)
        torch.testing.assert_close(truth.posterior_variance(x, schedule, t), full, rtol=1e-8, atol=1e-13)


def test_posterior_mean_and_variance_agree_with_quadrature() -> None:
    truth, schedule, t = bimodal(), VPLinear(), 0.4
    alpha, sigma = schedule.at(t)
    x_0 = torch.linspace(-6.0, 6.0, 200_001, dtype=torch.float64)
    x_t = torch.tensor([[-1.3], [0.1], [0.9]], dtype=torch.float64)
    prior = truth.log_prob(x_0[:, None])
    log_joint = prior - 0.5 * ((x_t - alpha * x_0) / sigma) ** 2
    weight = torch.softmax(log_joint, 1)
    mean = (weight * x_0).sum(1, keepdim=True)
    torch.testing.assert_close(truth.posterior_mean(x_t, schedule, t), mean, rtol=1e-10, atol=1e-10)
    variance = (weight * (x_0 - mean) ** 2).sum(1, keepdim=True)
    torch.testing.assert_close(truth.posterior_variance(x_t, schedule, t), variance, rtol=1e-10, atol=1e-10)
    density = torch.exp(log_joint).sum(1) * (x_0[1] - x_0[0]) / math.sqrt(2 * math.pi * sigma**2)
    torch.testing.assert_close(truth.log_prob_t(x_t, schedule, t), density.log(), rtol=1e-10, atol=1e-10)


@every_truth
def test_every_row_may_stand_at_its_own_time(truth: GaussianMixture) -> None:
    schedule = VPLinear()
    t = torch.linspace(schedule.t_min, schedule.t_max, 6, dtype=torch.float64)
    x = torch.cat([states(truth, schedule, time.item(), n=1) for time in t])
    for name in (
        "log_prob_t",
        "score",
        "posterior_mean",
        "posterior_variance",
        "posterior_covariance",
        "responsibilities",
    ):
        together = getattr(truth, name)(x, schedule, t)
        alone = torch.cat([getattr(truth, name)(x[i : i + 1], schedule, t[i].item()) for i in range(6)])
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


@every_truth
def test_moments_of_the_data_are_those_of_the_components(truth: GaussianMixture) -> None:
    flat = truth.means.reshape(truth.components, -1)
    weights = truth.weights.view(-1, 1, 1)
    second = (weights * (full_covariances(truth) + flat.unsqueeze(2) * flat.unsqueeze(1))).sum(0)
    mean = (truth.weights.view(-1, 1) * flat).sum(0)
    torch.testing.assert_close(truth.mean.reshape(-1), mean)
    torch.testing.assert_close(truth.covariance, second - torch.outer(mean, mean))
    torch.testing.assert_close(truth.variance.reshape(-1), truth.covariance.diagonal())


@every_truth
def test_samples_have_the_exact_moments(truth: GaussianMixture) -> None:
    """z-scores of all first and second moments below 5: false alarm below 1e-5 in all."""
    n = 20_000
    x = truth.sample(n, generator(11)).reshape(n, -1)
    z = (x.mean(0) - truth.mean.reshape(-1)) / (truth.variance.reshape(-1) / n).sqrt()
    assert z.abs().max() < 5
    centred = x - truth.mean.reshape(-1)
    products = centred.unsqueeze(2) * centred.unsqueeze(1)
    z = (products.mean(0) - truth.covariance) / (products.std(0) / math.sqrt(n))
    assert z.abs().max() < 5


@every_truth
def test_posterior_samples_have_the_posterior_moments(truth: GaussianMixture) -> None:
    """One x_t repeated: z-scores of mean and covariance below 5 (false alarm below 1e-5)."""
    schedule, t, n = VPLinear(), 0.3, 20_000
    x_t = states(truth, schedule, t, n=1)
    x_0 = truth.sample_posterior(x_t.expand(n, *truth.shape), schedule, t, generator(12)).reshape(n, -1)
    mean = truth.posterior_mean(x_t, schedule, t).reshape(-1)
    covariance = truth.posterior_covariance(x_t, schedule, t)[0]
    assert ((x_0.mean(0) - mean) / (covariance.diagonal() / n).sqrt()).abs().max() < 5
    products = (x_0 - mean).unsqueeze(2) * (x_0 - mean).unsqueeze(1)
    assert ((products.mean(0) - covariance) / (products.std(0) / math.sqrt(n))).abs().max() < 5


@every_truth
def test_tower_property_posterior_samples_of_noised_data_are_data_again(truth: GaussianMixture) -> None:
    """x_0 -> x_t -> x_0' leaves the law of the data unchanged; z-scores below 5."""
    schedule, t, n = EDM(), 0.7, 20_000
    x_0 = truth.sample(n, generator(13))
    x_t = x_0 + t * torch.randn(x_0.shape, dtype=torch.float64, generator=generator(14))
    back = truth.sample_posterior(x_t, schedule, t, generator(15)).reshape(n, -1)
    assert ((back.mean(0) - truth.mean.reshape(-1)) / (truth.variance.reshape(-1) / n).sqrt()).abs().max() < 5
    squares = (back - truth.mean.reshape(-1)) ** 2
    assert ((squares.mean(0) - truth.variance.reshape(-1)) / (squares.std(0) / math.sqrt(n))).abs().max() < 5
    mean = truth.posterior_mean(x_t, schedule, t).reshape(n, -1)  # E[E[x_0 | x_t]] = E[x_0]
    assert ((mean.mean(0) - truth.mean.reshape(-1)) / (mean.std(0) / math.sqrt(n))).abs().max() < 5


@every_schedule
def test_two_point_masses_have_the_posterior_mean_tanh(schedule: Schedule) -> None:
    truth = point_masses([[1.0], [-1.0]])
    for t in times(schedule):
        alpha, sigma = schedule.at(t)
        x = alpha * torch.tensor([[-1.0], [0.2], [1.0]], dtype=torch.float64) + 0.3 * sigma
        mean = torch.tanh(alpha * x / sigma**2)
        torch.testing.assert_close(truth.posterior_mean(x, schedule, t), mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(truth.posterior_variance(x, schedule, t), 1 - mean**2, rtol=1e-9, atol=1e-12)


def test_a_gaussian_and_a_mixture_of_equal_gaussians_are_the_same() -> None:
    one = TRUTHS["gaussian"]
    three = GaussianMixture([0.2, 0.3, 0.5], one.means.expand(3, 1, 2), full_covariances(one).expand(3, 2, 2))
    schedule, x = VPLinear(), torch.randn(5, 1, 2, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(three.log_prob_t(x, schedule, 0.3), one.log_prob_t(x, schedule, 0.3))
    torch.testing.assert_close(three.posterior_covariance(x, schedule, 0.3), one.posterior_covariance(x, schedule, 0.3))


def test_isotropic_diagonal_and_full_spellings_of_one_covariance_agree() -> None:
    means = torch.randn(2, 3, dtype=torch.float64, generator=generator())
    eye = torch.eye(3, dtype=torch.float64)
    spellings: list[torch.Tensor | float] = [
        0.3,
        torch.tensor([0.3, 0.3], dtype=torch.float64),
        0.3 * torch.ones(2, 3, dtype=torch.float64),
        (0.3 * eye).expand(2, 3, 3),
    ]
    schedule, x = VPLinear(), torch.randn(4, 3, dtype=torch.float64, generator=generator(1))
    answers = []
    for covariance in spellings:
        truth = GaussianMixture([0.4, 0.6], means, covariance)
        answers.append(
            (
                truth.log_prob_t(x, schedule, 0.4),
                truth.score(x, schedule, 0.4),
                truth.posterior_variance(x, schedule, 0.4),
                truth.covariance,
            )
        )
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0])


@pytest.mark.parametrize("sigma", [1e-150, 1e-30, 1e-8, 1e8, 1e30, 1e120])
@pytest.mark.parametrize("truth", [*TRUTHS.values(), point_masses([[1.0], [-1.0]]), grid_of_gaussians(std=0.0)])
def test_nothing_is_nan_at_extreme_signal_to_noise_ratios(truth: GaussianMixture, sigma: float) -> None:
    schedule = EDM(sigma_min=sigma / 2, sigma_max=sigma * 2)
    x = truth.sample(5, generator()) + sigma * torch.randn(5, *truth.shape, dtype=torch.float64, generator=generator(1))
    mean = truth.posterior_mean(x, schedule, sigma)
    eps = truth.denoiser(schedule)(x, sigma).eps
    for value in (mean, eps, truth.posterior_variance(x, schedule, sigma), truth.log_prob_t(x, schedule, sigma)):
        assert value.isfinite().all()
    if sigma < 1e-7:
        torch.testing.assert_close(mean, x, rtol=1e-6, atol=1e-6)
    if sigma > 1e7:
        torch.testing.assert_close(mean, truth.mean.expand_as(mean), rtol=1e-6, atol=1e-6)
    assert eps.abs().max() < 10


def test_eps_keeps_its_digits_at_very_small_noise() -> None:
    """(x - mean) / sigma would be off by 1e-16 / sigma = 1e-6 here."""
    sigma = 1e-10
    schedule = EDM(sigma_min=sigma)
    truth = Gaussian(torch.tensor([0.5]), 4.0)
    x = torch.tensor([[2.5], [-1.0]], dtype=torch.float64)
    eps = truth.denoiser(schedule)(x, sigma).eps
    torch.testing.assert_close(eps, sigma * (x - 0.5) / (4.0 + sigma**2), rtol=1e-12, atol=0)


def test_a_denoiser_without_noise_returns_its_input() -> None:
    truth, schedule = point_masses([[1.0], [-1.0]]), VPLinear()
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    posterior = truth.denoiser(schedule, covariance="diagonal")(x, 0.0)
    torch.testing.assert_close(posterior.mean, x)
    assert posterior.eps.isfinite().all()


def test_a_singular_full_covariance_works_wherever_there_is_noise() -> None:
    line = torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64)  # rank one
    truth, schedule = Gaussian(torch.zeros(2), line), VPLinear()
    x_0 = truth.sample(100, generator())
    torch.testing.assert_close(x_0[:, 1], 2 * x_0[:, 0])
    mean = truth.posterior_mean(torch.randn(9, 2, dtype=torch.float64, generator=generator()), schedule, 0.2)
    torch.testing.assert_close(mean[:, 1], 2 * mean[:, 0])
    with pytest.raises(ValueError, match="singular covariance"):
        truth.log_prob(x_0)


def test_samples_without_a_shape_of_their_own_are_scalars() -> None:
    truth = GaussianMixture([0.3, 0.7], [-0.8, 0.5], [0.04, 0.09])
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    schedule = VPLinear()
    assert truth.sample(3, generator()).shape == (3,)
    torch.testing.assert_close(truth.score(x, schedule, 0.5), bimodal().score(x[:, None], schedule, 0.5)[:, 0])


def test_log_ratio_is_the_difference_of_log_densities() -> None:
    p, q, schedule = TRUTHS["full"], TRUTHS["diagonal"], VPLinear()
    x, t = states(p, schedule, 0.4), 0.4
    expected = reference(p, *schedule.at(t)).log_prob(x.flatten(1)) - reference(q, *schedule.at(t)).log_prob(
        x.flatten(1)
    )
    torch.testing.assert_close(p.log_ratio(q, x, schedule, t), expected)
    torch.testing.assert_close(q.log_ratio(p, x, schedule, t), -expected)


def test_divergence_of_mixtures_is_estimated_without_bias() -> None:
    """Against quadrature on the line; five standard errors (false alarm 6e-7)."""
    p, q = bimodal(), Gaussian(torch.tensor([0.1]), 0.5)
    grid = torch.linspace(-8, 8, 400_001, dtype=torch.float64)[:, None]
    log_p = p.log_prob(grid)
    exact = (log_p.exp() * (log_p - q.log_prob(grid))).sum().item() * (grid[1] - grid[0]).item()
    estimate = p.kl(q, generator(3), n=20_000)
    assert estimate.standard_error < 0.02
    assert abs(estimate.value - exact) < 5 * estimate.standard_error


def test_a_covariance_shared_by_all_components_is_decomposed_once() -> None:
    means = torch.randn(4, 3, dtype=torch.float64, generator=generator())
    one = full_covariances(TRUTHS["full"])[0][:3, :3]
    shared = GaussianMixture(torch.full((4,), 0.25), means, one.expand(4, 3, 3))
    copied = GaussianMixture(torch.full((4,), 0.25), means, one.repeat(4, 1, 1))
    assert shared.spectrum.vectors is not None
    assert shared.spectrum.vectors.stride(0) == 0
    torch.testing.assert_close(shared.log_prob(means), copied.log_prob(means))


def test_chunks_of_components_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, schedule = grid_of_gaussians(), VPLinear()
    x = states(truth, schedule, 0.2, n=8)
    t = torch.linspace(0.01, 0.9, 8, dtype=torch.float64)
    whole = (
        truth.posterior_mean(x, schedule, t),
        truth.posterior_variance(x, schedule, t),
        truth.log_prob_t(x, schedule, t),
        truth.posterior_covariance(x, schedule, t),
    )
    monkeypatch.setattr("trueward.truth.components.CHUNK", 48)
    pieces = (
        truth.posterior_mean(x, schedule, t),
        truth.posterior_variance(x, schedule, t),
        truth.log_prob_t(x, schedule, t),
        truth.posterior_covariance(x, schedule, t),
    )
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-13)


def test_memory_stays_far_below_one_array_of_batch_components_size() -> None:
    """256 x 100 x 1000 numbers would be 205 MB; a single work array may not exceed a tenth of it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return out

    means = torch.randn(100, 1000, dtype=torch.float64, generator=generator())
    truth = GaussianMixture(torch.full((100,), 0.01), means, 0.3)
    x = torch.randn(256, 1000, dtype=torch.float64, generator=generator(1))
    with Watch():
        truth.posterior_variance(x, VPLinear(), 0.5)
    assert largest < 256 * 100 * 1000 * 8 / 10
