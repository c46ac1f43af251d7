"""The DDPM / DDIM family against exact Gaussian laws."""

from __future__ import annotations

import math

import pytest
import torch

from trueward.denoisers import Denoiser, Posterior
from trueward.samplers import DDIM, Ancestral
from trueward.schedules import EDM, VE, DiscreteSchedule, VPLinear


class Gaussian(Denoiser):
    """Exact for data N(0, c2), one-dimensional."""

    def __init__(self, schedule, c2=0.25, data_range=None):
        super().__init__(schedule, shape=(1,), data_range=data_range)
        self.c2 = c2

    def forward(self, x_t, t, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        norm = alpha**2 * self.c2 + sigma**2
        return Posterior(x_t, alpha, sigma, mean=x_t * (self.c2 * alpha / norm), var=self.c2 * sigma**2 / norm)


def variances(sampler, denoiser):
    """Exact variance after every step: each step is x -> a x + std z, read off its transition."""
    run = sampler.start(denoiser)
    alpha, sigma = run.plan.levels.alpha[0], run.plan.levels.sigma[0]
    variance = [alpha**2 * denoiser.c2 + sigma**2]
    for level in range(run.plan.steps):
        mean, std = sampler.transition(run, torch.ones(1, 1, dtype=torch.float64), level)
        variance.append(mean.item() ** 2 * variance[-1] + std**2)
    return variance


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [5, 10])
def test_posterior_variance_makes_the_chain_exact_on_gaussians(eta, steps):
    v = variances(Ancestral(steps, eta=eta, variance="posterior"), Gaussian(DiscreteSchedule.linear()))
    assert v[-2] == pytest.approx(0.250075, abs=1e-9)  # x_1
    assert v[-1] == pytest.approx(0.24990003, abs=1e-8)  # the mean of the data given x_1


@pytest.mark.parametrize("schedule", [VE(), EDM(), VPLinear()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_posterior_variance_is_exact_for_any_alpha_and_sigma(schedule, eta):
    sampler = Ancestral(6, eta=eta, variance="posterior", grid="log-snr")
    levels = sampler.levels(schedule)
    v = variances(sampler, Gaussian(schedule))
    for got, alpha, sigma in zip(v[:-1], levels.alpha, levels.sigma):
        assert got == pytest.approx(alpha**2 * 0.25 + sigma**2, rel=1e-9)


@pytest.mark.parametrize(
    ("sampler", "k5", "k10"),
    [
        (lambda k: Ancestral(k), 0.0440182, 0.1042955),
        (lambda k: Ancestral(k, variance="beta"), 0.5587433, 0.3587722),
        (lambda k: DDIM(k), 0.0506977, 0.1308506),
    ],
    ids=["beta-tilde", "beta", "ddim"],
)
def test_guessed_variances_give_the_wrong_law_they_are_known_to_give(sampler, k5, k10):
    d = Gaussian(DiscreteSchedule.linear())
    assert variances(sampler(5), d)[-2] == pytest.approx(k5, abs=1e-7)
    assert variances(sampler(10), d)[-2] == pytest.approx(k10, abs=1e-7)


def test_sampled_variance_agrees_with_the_exact_one():
    sampler = Ancestral(5, variance="posterior")
    x = sampler.sample(Gaussian(DiscreteSchedule.linear()), n=200_000, dtype=torch.float64).x
    # x_T ~ N(0, 1) here, the law at t_max is N(0, 1 - 3e-5): far inside the error bar; false alarm 1e-4
    assert x.var().item() == pytest.approx(0.2499, abs=3.9 * 0.25 * math.sqrt(2 / 200_000))
    assert abs(x.mean().item()) < 3.9 * 0.5 / math.sqrt(200_000)


def test_both_forms_of_the_ddpm_mean_agree_without_clamping():
    d = Gaussian(VPLinear())
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    a, b = Ancestral(8), Ancestral(8, eta=1.0 - 1e-12)
    for level in range(8):
        assert torch.allclose(
            a.transition(a.start(d), x, level).mean, b.transition(b.start(d), x, level).mean, atol=1e-6
        )


def test_clamping_keeps_x_in_ddpm_and_raw_eps_in_ddim():
    s = VPLinear()
    d = Gaussian(s, data_range=(-0.02, 0.02))
    x = torch.tensor([[1.5]], dtype=torch.float64)
    ddim, ddpm = DDIM(4), Ancestral(4)
    levels = ddim.levels(s)
    p = d(x, float(levels.t[1]))
    alpha_s, sigma_s, alpha_t, sigma_t = levels.alpha[2], levels.sigma[2], levels.alpha[1], levels.sigma[1]
    assert p.mean.item() > 0.02
    assert ddim.transition(ddim.start(d), x, 1).mean.item() == pytest.approx(alpha_s * 0.02 + sigma_s * p.eps.item())
    beta = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    expected = beta * alpha_s / sigma_t**2 * 0.02 + (alpha_t / alpha_s) * sigma_s**2 / sigma_t**2 * 1.5
    assert ddpm.transition(ddpm.start(d), x, 1).mean.item() == pytest.approx(expected)
    off = DDIM(4, clip=False)
    assert off.transition(off.start(d), x, 1).mean.item() == pytest.approx(
        alpha_s * p.mean.item() + sigma_s * p.eps.item()
    )


def test_ddim_with_one_variance_needs_a_denoiser_that_knows_it():
    class Plain(Gaussian):
        def forward(self, x_t, t, **condition):
            p = super().forward(x_t, t)
            return Posterior(x_t, p.alpha, p.sigma, mean=p.mean)

    with pytest.raises(ValueError, match="fit-covariance"):
        Ancestral(4, variance="posterior").sample(Plain(VPLinear()), n=1)


def test_the_last_step_adds_no_noise_whatever_the_variance():
    d = Gaussian(VPLinear())
    x = torch.ones(1, 1, dtype=torch.float64)
    for sampler in (Ancestral(4), Ancestral(4, variance="beta"), Ancestral(4, variance="posterior")):
        mean, std = sampler.transition(sampler.start(d), x, 3)
        assert std == 0.0
        assert mean.item() == pytest.approx(d(x, 1e-3).mean.item())


def test_a_diagonal_covariance_is_used_per_entry():
    class Diagonal(Denoiser):
        def forward(self, x_t, t, **condition):
            alpha, sigma = self.schedule.coefficients(t, x_t)
            c2 = torch.tensor([0.04, 1.0], dtype=x_t.dtype)
            norm = alpha**2 * c2 + sigma**2
            return Posterior(
                x_t, alpha, sigma, mean=x_t * (c2 * alpha / norm), var=(c2 * sigma**2 / norm).expand_as(x_t)
            )

    d = Diagonal(DiscreteSchedule.linear(), shape=(2,))
    x = Ancestral(5, variance="posterior").sample(d, n=100_000, dtype=torch.float64).x
    for i, c2 in enumerate((0.04, 1.0)):  # false alarm 1e-4; C_1 is lost in the last step
        lost = c2 * 1e-4 / (c2 * 0.9999 + 1e-4)
        assert x[:, i].var().item() == pytest.approx(c2 - lost, abs=3.9 * c2 * math.sqrt(2 / 100_000) + 1e-4)
