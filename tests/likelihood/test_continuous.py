"""The continuous bound is what the discrete one tends to."""

from __future__ import annotations

import math

import pytest
import torch

from covariance.exact import LINEAR, IsotropicGaussian
from trueward.likelihood import GaussianDensity, continuous_elbo, elbo, gaussian_kl
from trueward.samplers import Ancestral
from trueward.schedules import EDM, VPLinear

X_0 = 0.5 * torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), LINEAR], ids=lambda s: type(s).__name__)
def test_an_exact_gaussian_has_its_entropy_in_continuous_time(schedule):
    bound = continuous_elbo(IsotropicGaussian(schedule, knows=True), X_0, decoder=GaussianDensity(), points=32)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25)
    alpha, sigma = schedule.at(schedule.t_max)
    gap = gaussian_kl(alpha**2 * 0.25 + sigma**2, float(schedule.prior_std()) ** 2, 0.0)
    assert abs(bound.total - entropy - gap) < 4 * bound.total_error
    assert bound.total_error < 0.06


def test_the_number_of_points_is_a_matter_of_noise_only():
    model = IsotropicGaussian(VPLinear(), knows=True)
    few, many = (continuous_elbo(model, X_0, decoder=GaussianDensity(), points=p) for p in (2, 40))
    assert abs(few.total - many.total) < 4 * math.hypot(few.total_error, many.total_error)
    assert many.total_error < few.total_error


@pytest.mark.parametrize("variance", ["beta", "beta-tilde", "posterior"])
def test_with_many_steps_every_variance_gives_the_continuous_bound(variance):
    schedule = VPLinear(t_min=1e-2)
    model = IsotropicGaussian(schedule, knows=True)
    limit = continuous_elbo(model, X_0, decoder=GaussianDensity(), points=64)
    many = elbo(
        model, X_0, Ancestral(400, variance=variance, grid="log-snr"), decoder=GaussianDensity(), batch_size=4000
    )
    assert many.total == pytest.approx(limit.total, abs=0.06)


def test_bad_calls_are_told_in_one_sentence():
    model = IsotropicGaussian(VPLinear())
    with pytest.raises(ValueError, match="points"):
        continuous_elbo(model, X_0, decoder=GaussianDensity(1.0), points=0)
    with pytest.raises(ValueError, match="not finite"):
        continuous_elbo(model, X_0, decoder=GaussianDensity(1.0), t_min=0.0)
