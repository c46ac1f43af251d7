"""A truth as a model: the same answers through the contract of denoisers, with classes and covariances."""

from __future__ import annotations

import pytest
import torch
from truth_cases import SCHEDULES, TRUTHS, generator, states, times

from trueward.schedules import EDM, Schedule, VPLinear
from trueward.truth import GaussianMixture, bimodal, grid_of_gaussians, point_masses


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS.keys())
def test_denoiser_gives_the_posterior_of_its_truth(truth: GaussianMixture, schedule: Schedule) -> None:
    model = truth.denoiser(schedule, covariance="diagonal")
    for t in times(schedule):
        x = states(truth, schedule, t)
        alpha, sigma = schedule.at(t)
        posterior = model(x, torch.tensor(t))
        posterior = model(x, t)
        torch.testing.assert_close(posterior.mean, truth.posterior_mean(x, schedule, t))
        torch.testing.assert_close(posterior.score, truth.score(x, schedule, t))
        torch.testing.assert_close(posterior.var, truth.posterior_variance(x, schedule, t))
        torch.testing.assert_close(alpha * posterior.mean + sigma * posterior.eps, x, rtol=1e-10, atol=1e-10)


def test_covariance_is_none_one_number_per_row_or_a_diagonal() -> None:
    truth, schedule = TRUTHS["full"], VPLinear()
    x = states(truth, schedule, 0.3)
    assert truth.denoiser(schedule)(x, 0.3).var is None
    diagonal = truth.denoiser(schedule, covariance="diagonal")(x, 0.3).var
    isotropic = truth.denoiser(schedule, covariance="isotropic")(x, 0.3).var
    assert isinstance(diagonal, torch.Tensor)
    assert isinstance(isotropic, torch.Tensor)
    assert isotropic.shape == (6, 1, 1)
    torch.testing.assert_close(isotropic, diagonal.mean((1, 2), keepdim=True))
    with pytest.raises(ValueError, match="Did you mean 'diagonal'"):
        truth.denoiser(schedule, covariance="diagonl")


def test_a_class_is_the_mixture_of_its_components_and_the_last_label_the_whole() -> None:
    truth, schedule = TRUTHS["diagonal"], VPLinear()
    model = truth.denoiser(schedule, covariance="diagonal", classes=[0, 1, 0])
    assert model.num_classes == 2
    x = states(truth, schedule, 0.3)
    diagonals = truth.spectrum.values.view(3, 2, 2)
    first = GaussianMixture([0.4, 0.6], truth.means[[0, 2]], diagonals[[0, 2]])
    second = GaussianMixture([1.0], truth.means[[1]], diagonals[[1]])
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for t in (0.3, torch.linspace(0.01, 1.0, 6, dtype=torch.float64)):
        posterior = model(x, t, class_labels=labels)
        for label, expected in enumerate((first, second, truth)):
            rows = labels == label
            at = t[rows] if isinstance(t, torch.Tensor) else t
            torch.testing.assert_close(posterior.mean[rows], expected.posterior_mean(x[rows], schedule, at))
            assert isinstance(posterior.var, torch.Tensor)
            torch.testing.assert_close(posterior.var[rows], expected.posterior_variance(x[rows], schedule, at))
    torch.testing.assert_close(model(x, 0.3).mean, truth.posterior_mean(x, schedule, 0.3))


def test_a_class_far_from_the_point_is_not_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = point_masses([[1.0], [-1.0], [5.0]])
    monkeypatch.setattr("trueward.truth.components.CHUNK", 1)  # chunks that hold only components of other classes
    model = truth.denoiser(EDM(), covariance="diagonal", classes=[0, 0, 1])
    posterior = model(torch.tensor([[1.0], [5.0]], dtype=torch.float64), 0.002, class_labels=torch.tensor([1, 0]))
    torch.testing.assert_close(posterior.mean, torch.tensor([[5.0], [1.0]], dtype=torch.float64))
    assert posterior.eps.isfinite().all()


def test_denoiser_answers_in_the_dtype_of_its_input_and_computes_in_float64() -> None:
    truth, schedule = grid_of_gaussians(), EDM()
    x = states(truth, schedule, 0.5).float()
    posterior = truth.denoiser(schedule, covariance="diagonal")(x, 0.5)
    assert isinstance(posterior.var, torch.Tensor)
    assert posterior.mean.dtype == posterior.eps.dtype == posterior.var.dtype == torch.float32
    exact = truth.posterior_mean(x.double(), schedule, 0.5)
    torch.testing.assert_close(posterior.mean, exact.float(), rtol=1e-6, atol=1e-6)
    assert truth.denoiser(schedule).dtype == torch.float64


def test_denoiser_is_differentiable_and_its_jacobian_is_the_posterior_covariance() -> None:
    """d mean / d x_t = alpha / sigma^2 Cov[x_0 | x_t]."""
    truth, schedule, t = TRUTHS["full"], VPLinear(), 0.4
    alpha, sigma = schedule.at(t)
    x = states(truth, schedule, t, n=1)
    model = truth.denoiser(schedule)
    jacobian = torch.autograd.functional.jacobian(lambda y: model(y, t).mean, x).view(4, 4)
    expected = truth.posterior_covariance(x, schedule, t)[0] * alpha / sigma**2
    torch.testing.assert_close(jacobian, expected, rtol=1e-9, atol=1e-10)


def test_denoiser_under_another_schedule_is_the_truth_under_that_schedule() -> None:
    truth, x = bimodal(), torch.randn(5, 1, dtype=torch.float64, generator=generator())
    moved = truth.denoiser(VPLinear()).on(EDM())
    torch.testing.assert_close(moved(x, 0.7).mean, truth.posterior_mean(x, EDM(), 0.7), rtol=1e-10, atol=1e-11)


def test_wrong_conditions_are_refused_by_name() -> None:
    truth, x = bimodal(), torch.zeros(2, 1)
    with pytest.raises(ValueError, match="has no classes"):
        truth.denoiser(VPLinear())(x, 0.5, class_labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="class_labels only, got text"):
        truth.denoiser(VPLinear())(x, 0.5, text="a cat")
    with pytest.raises(ValueError, match="every label 0"):
        truth.denoiser(VPLinear(), classes=[0, 2])
    with pytest.raises(ValueError, match=r"classes must be \(2,\)"):
        truth.denoiser(VPLinear(), classes=[0])
