"""What only a single Gaussian has in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from truth_cases import covariances, generator

from trueward.schedules import EDM, VPLinear
from trueward.truth import Gaussian, GaussianMixture, bimodal


def _pair(kind_p: str, kind_q: str) -> tuple[Gaussian, Gaussian]:
    def one(kind: str, seed: int) -> Gaussian:
        mean = torch.randn(3, dtype=torch.float64, generator=generator(seed))
        if kind == "isotropic":
            return Gaussian(mean, 0.2 + 0.3 * seed)
        if kind == "diagonal":
            return Gaussian(mean, 0.1 + torch.rand(3, dtype=torch.float64, generator=generator(seed)))
        return Gaussian(mean, covariances(1, 3, seed)[0])

    return one(kind_p, 1), one(kind_q, 2)


@pytest.mark.parametrize("kind_p", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("kind_q", ["isotropic", "diagonal", "full"])
def test_divergence_of_gaussians_is_that_of_torch_distributions(kind_p: str, kind_q: str) -> None:
    p, q = _pair(kind_p, kind_q)
    laws = [torch.distributions.MultivariateNormal(truth.mean, truth.covariance) for truth in (p, q)]
    expected = torch.distributions.kl_divergence(*laws).item()
    found = p.kl(q)
    assert found.standard_error == 0.0
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert p.kl(p).value == pytest.approx(0.0, abs=1e-12)


def test_posterior_of_a_gaussian_is_conjugate() -> None:
    truth, schedule, t = Gaussian(torch.zeros(3), covariances(1, 3, 7)[0]), VPLinear(), 0.4
    alpha, sigma = schedule.at(t)
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator())
    precision = truth.covariance.inverse() + (alpha / sigma) ** 2 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(truth.posterior_covariance(x, schedule, t), precision.inverse().expand(4, 3, 3))
    torch.testing.assert_close(truth.posterior_mean(x, schedule, t), (alpha / sigma**2) * x @ precision.inverse())


def test_image_shaped_gaussian_keeps_its_shape_everywhere() -> None:
    truth, schedule = Gaussian(torch.zeros(1, 4, 4), covariances(1, 16, 8)[0]), EDM()
    x = torch.randn(3, 1, 4, 4, generator=generator())
    for answer in (
        truth.score(x, schedule, 0.5),
        truth.posterior_mean(x, schedule, 0.5),
        truth.posterior_variance(x, schedule, 0.5),
        truth.sample_posterior(x, schedule, 0.5, generator()),
        truth.sample(3, generator()),
        truth.flow(x, schedule, 2.0, 0.1),
    ):
        assert answer.shape == (3, 1, 4, 4)
        assert answer.dtype == torch.float64
    assert truth.posterior_covariance(x, schedule, 0.5).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.4, 1.0]])), "not symmetric"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "negative eigenvalue -1"),
        (lambda: Gaussian(torch.zeros(2), -1.0), "must not be negative, got -1"),
        (lambda: Gaussian(torch.zeros(2), torch.ones(3)), r"covariance has shape \(1, 3\)"),
        (lambda: Gaussian(torch.tensor([math.nan]), 1.0), "mean must be finite"),
        (lambda: Gaussian(torch.zeros(2), math.inf), "covariance must be finite"),
        (lambda: GaussianMixture([0.5, 0.6], torch.zeros(2, 1), 1.0), "sum to 1"),
        (lambda: GaussianMixture([1.5, -0.5], torch.zeros(2, 1), 1.0), "must be positive"),
        (lambda: GaussianMixture([0.5, 0.5], torch.zeros(3, 1), 1.0), "2 weights"),
        (lambda: bimodal().log_prob(torch.zeros(3)), r"x must be \(batch, \*\(1,\)\)"),
        (lambda: bimodal().sample(0, generator()), "n must be at least 1"),
        (lambda: bimodal().kl(bimodal()), "give kl a torch.Generator"),
        (lambda: Gaussian(torch.zeros(1), 0.0).kl(Gaussian(torch.zeros(1), 1.0)), "singular"),
        (lambda: bimodal().kl(Gaussian(torch.zeros(2), 1.0), generator()), "must agree"),
    ],
)
def test_bad_input_is_refused_by_name(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
