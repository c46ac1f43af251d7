"""Guidance as a shift of the mean, against the substitution of the score, on a Gaussian whose mean is wrong by 0.5."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trueward.critics import TruthCritic
from trueward.refinement import DiffRS, DiscriminatorGuidance, MeanShift, SamplerChain, calibrate
from trueward.samplers import Ancestral
from trueward.samplers.reverse_step import ReverseSteps
from trueward.schedules import VPLinear
from trueward.times import Times
from trueward.truth import Gaussian

F64 = torch.float64
S = VPLinear(t_min=1e-5)
REAL, MODEL = Gaussian([0.0], 1.0), Gaussian([0.5], 1.0)


def guided(weight=1.0):
    return DiscriminatorGuidance(MODEL.denoiser(S), TruthCritic(REAL, MODEL, S), weight, noise_range=(0.0, math.inf))


def without_noise(sampler, denoiser):
    """Where x = 0 goes if every step goes to its mean."""
    run, x = sampler.start(denoiser), torch.zeros(1, 1, dtype=F64)
    for level in range(run.plan.steps):
        x = sampler.transition(run, x, level).mean
    return x.item()


def even(n):
    return Times([j / n for j in range(n, 0, -1)])


@pytest.mark.parametrize(
    ("n", "small", "large"),
    [
        (25, 0.166959, 0.052145),
        (50, 0.095946, 0.026990),
        (100, 0.052318, 0.013733),
        (200, 0.027597, 0.006928),
        (400, 0.014265, 0.003479),
    ],
)
def test_the_shift_leaves_a_known_part_of_the_error_and_the_substitution_none(n, small, large):
    # the standard deviation in place of the variance, or the variance of the next step, give other numbers
    assert without_noise(Ancestral(n, grid=even(n)), MODEL.denoiser(S)) == pytest.approx(0.499978, abs=1e-5)
    assert without_noise(Ancestral(n, grid=even(n)), guided()) == pytest.approx(0.0, abs=1e-6)
    assert without_noise(MeanShift(n, grid=even(n)), guided()) == pytest.approx(small, abs=1e-5)
    assert without_noise(MeanShift(n, grid=even(n), variance="beta"), guided()) == pytest.approx(large, abs=1e-5)


def test_both_forms_move_the_mean_by_their_coefficients():
    # beta = 0.02, abar 0.5 before and 0.49 after
    after, before = (S.time_of_log_snr(math.log(a / (1 - a))).item() for a in (0.49, 0.5))
    step = ReverseSteps.between(S, before, after)
    assert step.beta.item() == pytest.approx(0.02, abs=1e-9)
    grid = Times([after, before])
    x = torch.tensor([[0.3]], dtype=F64)
    gradient, _ = guided().critic.gradient(x, after)

    def moved(sampler):
        a, b = (sampler.transition(sampler.start(d), x, 0).mean for d in (guided(), guided(0.0)))
        return ((a - b) / gradient).item()

    assert moved(Ancestral(2, grid=grid)) == pytest.approx(0.0202031, abs=1e-6)
    assert moved(MeanShift(2, grid=grid)) == pytest.approx(0.0196078, abs=1e-6)
    assert moved(MeanShift(2, grid=grid, variance="beta")) == pytest.approx(0.02, abs=1e-6)


def test_the_shift_keeps_the_noise_of_the_sampler_and_counts_the_model_once_a_step():
    plain, shifted = Ancestral(12), MeanShift(12)
    a, b = plain.sample(MODEL.denoiser(S), n=5, seed=3), shifted.sample(guided(0.0), n=5, seed=3)
    assert torch.equal(a.x, b.x)
    assert b.nfe == 12
    assert shifted.sample(guided(), n=20_000, dtype=F64).x.mean().item() < a.x.mean().item() + 1.0


def test_the_shift_uses_the_variance_that_the_posterior_knows():
    model = DiscriminatorGuidance(
        MODEL.denoiser(S, covariance="diagonal"), TruthCritic(REAL, MODEL, S), 1.0, noise_range=(0.0, math.inf)
    )
    means = [
        without_noise(MeanShift(25, grid=even(25), variance=v), model) for v in ("beta-tilde", "posterior", "beta")
    ]
    assert means[0] > means[1] > 0.0
    assert not np.isclose(means[1], means[2])


def test_rejection_takes_the_shifted_sampler_row_by_row():
    chain = SamplerChain(MeanShift(10), guided(0.5), TruthCritic(REAL, MODEL, S))
    refined = DiffRS(chain, calibrate(chain, 200).constants(0.9)).sample(300, batch_size=100)
    assert refined.x.isfinite().all()
    assert refined.x.mean().item() < 0.4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MeanShift(5).sample(MODEL.denoiser(S), n=2),
            "guidance of a DiscriminatorGuidance, but the denoiser is",
        ),
        (
            lambda: MeanShift(5, variance="posterior").sample(guided(), n=2),
            "needs a denoiser that knows its covariance",
        ),
    ],
)
def test_wrong_calls_are_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
