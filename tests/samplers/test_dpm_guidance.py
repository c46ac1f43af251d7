"""Guidance is a wrapper of the model: the solvers reach the closed-form guided samples."""

from __future__ import annotations

import math

import pytest
import torch
from dpm_cases import LINEAR, T_END, column, gaussian

from trueward.denoisers import ClassifierFreeGuidance, ClassifierGuidance, Denoiser
from trueward.samplers import DPMSolverFast, DPMSolverMultistep, DPMSolverSinglestep

X_T = column(-1.5, 0.2, 2.0)
Y = 1.2  # observed, y | x_0 ~ N(x_0, 1/4) for data N(0, 1): the posterior is N(0.96, 0.2)
EXACT = column(0.28614574, 1.04658914, 1.85176451)


def log_likelihood(x_t, t):
    """Exact log p(y | x_t)."""
    alpha, sigma = LINEAR.coefficients(t, x_t)
    norm = alpha**2 + sigma**2
    variance = sigma**2 / norm + 0.25
    gap = Y - alpha / norm * x_t[:, 0]
    return -0.5 * gap**2 / variance - 0.5 * math.log(2 * math.pi * variance)


def guided(scale=1.0):
    return ClassifierGuidance(gaussian(0.0, 1.0).denoiser(LINEAR), log_likelihood, scale)


def test_the_known_answer_is_the_flow_of_the_posterior():
    assert torch.allclose(gaussian(0.96, 0.2).flow(X_T, LINEAR, 1.0, T_END), EXACT, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("form", "error"), [("noise", 1.7e-5), ("data", 1.1e-5)])
def test_classifier_guidance_samples_the_bayes_posterior(form, error):
    x = DPMSolverSinglestep(40, order=3, algorithm=form).sample(guided(), X_T).x
    assert (x - EXACT).abs().max().item() == pytest.approx(error, rel=0.05)


def test_forty_evaluations_are_enough_for_three_digits():
    assert (DPMSolverFast(40).sample(guided(), X_T).x - EXACT).abs().max().item() < 4e-4
    assert (DPMSolverMultistep(40, order=3).sample(guided(), X_T).x - EXACT).abs().max().item() < 1.3e-3


def test_wrong_guidance_is_caught():
    class WithoutSigma(ClassifierGuidance):
        def forward(self, x_t, t, **condition):
            posterior = super().forward(x_t, t, **condition)
            plain = self.inner(x_t, t).eps
            return posterior.replace(eps=plain + (posterior.eps - plain) / posterior.sigma)

    for wrong in (guided(-1.0), WithoutSigma(guided().inner, log_likelihood)):
        x = DPMSolverSinglestep(40, order=3).sample(wrong, X_T).x
        assert not (x - EXACT).abs().max().item() < 1e-2


class TwoMeans(Denoiser):
    """Two Gaussians of equal variance; label 0 is the conditional one, 1 (no class) the other."""

    def __init__(self, mean_u: float, mean_c: float, variance: float) -> None:
        super().__init__(LINEAR, shape=(1,), num_classes=1)
        self.means = torch.tensor([[mean_c], [mean_u]], dtype=torch.float64)
        self.base = gaussian(0.0, variance).denoiser(LINEAR)

    def forward(self, x_t, t, class_labels):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        means = self.means[class_labels]
        centred = self.base(x_t - alpha * means, t)
        return type(centred)(x_t, alpha, sigma, mean=centred.mean + means)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("form", ["noise", "data"])
def test_classifier_free_guidance_of_two_gaussians_moves_the_mean(scale, form):
    mean_u, mean_c, variance = -0.3, 0.5, 0.2
    model = ClassifierFreeGuidance(TwoMeans(mean_u, mean_c, variance), scale)
    x = DPMSolverSinglestep(40, order=3, algorithm=form).sample(model, X_T, class_labels=0).x
    exact = gaussian(mean_u + scale * (mean_c - mean_u), variance).flow(X_T, LINEAR, 1.0, T_END)
    assert (x - exact).abs().max() < 5e-5
    swapped = gaussian(mean_c + scale * (mean_u - mean_c), variance).flow(X_T, LINEAR, 1.0, T_END)
    assert (x - swapped).abs().max() > 0.1
