"""Parametrisations and guidance against the closed form of a Gaussian."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trueward.denoisers import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Denoiser,
    EDMDenoiser,
    Posterior,
    Rescheduled,
    denoiser,
)
from trueward.schedules import EDM, VE, DiscreteSchedule, FlowMatching, VPCosine, VPLinear

SCHEDULES = [VPLinear(), VPCosine(), VE(), EDM(), DiscreteSchedule.linear(), FlowMatching()]
VARIANCE, MEAN = 0.25, 0.4


def exact_mean(x, alpha, sigma):
    """E[x_0 | x_t] of data N(0.4, 0.25)."""
    return MEAN + VARIANCE * alpha / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


class ExactNetwork(nn.Module):
    """What a perfect network of each kind would answer, asked by label (here: the time)."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction

    def forward(self, x, label):
        s = self.schedule
        if self.prediction == "edm":  # undo the preconditioning
            sigma_ve = torch.exp(4.0 * label.double())[:, None]
            y = x * torch.sqrt(sigma_ve**2 + 0.25)
            d = exact_mean(y, 1.0, sigma_ve)
            return (d - 0.25 / (sigma_ve**2 + 0.25) * y) * torch.sqrt(sigma_ve**2 + 0.25) / (0.5 * sigma_ve)
        t = label.double()
        alpha, sigma = s.alpha(t)[:, None], s.sigma(t)[:, None]
        mean = exact_mean(x, alpha, sigma)
        eps = (x - alpha * mean) / sigma
        return {"eps": eps, "x0": mean, "score": -eps / sigma, "v": alpha * eps - sigma * mean, "flow": eps - mean}[
            self.prediction
        ]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "flow", "edm"])
@pytest.mark.parametrize("s", SCHEDULES, ids=lambda s: type(s).__name__)
def test_every_parametrisation_gives_the_same_posterior(s, prediction):
    network = ExactNetwork(s, prediction).double()
    d = denoiser(network, s, prediction, label=None if prediction == "edm" else lambda t: t)
    x = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None]
    for t in (s.t_min + 0.3 * (s.t_max - s.t_min), s.t_max):
        t = round(float(t), 3)
        alpha, sigma = s.at(t)
        mean = exact_mean(x, alpha, sigma)
        eps = (x - alpha * mean) / sigma
        for time in (t, torch.full((8,), t, dtype=torch.float64)):
            p = d(x, time)
            assert torch.allclose(p.mean, mean, rtol=1e-9, atol=1e-9)
            assert torch.allclose(p.eps, eps, rtol=1e-9, atol=1e-9)
            assert torch.allclose(p.score, -eps / sigma, rtol=1e-9, atol=1e-9)
            assert torch.allclose(p.v, alpha * eps - sigma * mean, rtol=1e-9, atol=1e-9)


def test_views_are_consistent_from_any_of_mean_eps_and_v():
    x = torch.randn(5, 3, dtype=torch.float64)
    mean = torch.randn(5, 3, dtype=torch.float64)
    for alpha, sigma in [
        (0.8, 0.6),
        (1.0, 3.0),
        (0.3, 0.2),
        (torch.rand(5, 1).double() + 0.1, torch.rand(5, 1).double() + 0.1),
    ]:
        eps = (x - alpha * mean) / sigma
        v = alpha * eps - sigma * mean
        for p in (
            Posterior(x, alpha, sigma, mean=mean),
            Posterior(x, alpha, sigma, eps=eps),
            Posterior(x, alpha, sigma, v=v),
        ):
            for got, want in ((p.mean, mean), (p.eps, eps), (p.v, v), (p.score, -eps / sigma)):
                assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_posterior_replace_keeps_what_is_not_given():
    x = torch.randn(2, 3)
    p = Posterior(x, 1.0, 2.0, mean=x, var=0.5)
    assert p.replace(mean=2 * x).var == 0.5
    assert torch.equal(p.replace(var=0.1).mean, x)
    assert torch.allclose(p.replace(mean=2 * x).eps, -x / 2)


def test_gradients_flow_through_the_posterior_views():
    x = torch.randn(4, 2, requires_grad=True)
    p = Posterior(x, 0.8, 0.6, eps=x * 0.5)
    (g,) = torch.autograd.grad(p.mean.sum(), x)
    assert torch.allclose(g, torch.full_like(x, (1 - 0.6 * 0.5) / 0.8))


class Mixed(Denoiser):
    """Gaussian data N(m_y, v); class 2 means no class: N(m_2, v)."""

    def __init__(self, schedule):
        super().__init__(schedule, shape=(1,), num_classes=2)
        self.means = torch.tensor([-1.0, 1.0, 0.25], dtype=torch.float64)
        self.calls = []

    def forward(self, x_t, t, class_labels):
        self.calls.append(x_t.shape[0])
        alpha, sigma = self.schedule.coefficients(t, x_t)
        m = self.means[class_labels][:, None]
        return Posterior(x_t, alpha, sigma, mean=m + 0.2 * alpha / (alpha**2 * 0.2 + sigma**2) * (x_t - alpha * m))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classifier_free_guidance_is_the_gaussian_of_the_extrapolated_mean(scale):
    inner = Mixed(VPLinear())
    guided = ClassifierFreeGuidance(inner, scale)
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None]
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    m = (0.25 + scale * (inner.means[labels] - 0.25))[:, None]
    for t in (0.4, torch.linspace(0.2, 0.9, 6)):
        inner.calls.clear()
        p = guided(x, t, class_labels=labels)
        assert inner.calls == [6 if scale == 1.0 else 12]  # one call, of the doubled batch
        alpha, sigma = inner.schedule.coefficients(t, x)
        assert torch.allclose(p.mean, m + 0.2 * alpha / (alpha**2 * 0.2 + sigma**2) * (x - alpha * m), rtol=1e-10)


def test_classifier_guidance_with_the_exact_classifier_is_bayes_rule():
    s = VPLinear()

    class Standard(Denoiser):
        def forward(self, x_t, t, **condition):
            alpha, sigma = self.schedule.coefficients(t, x_t)
            return Posterior(x_t, alpha, sigma, mean=alpha * x_t)  # data N(0, 1)

    def log_prob(x_t, t, y):  # y | x_0 ~ N(x_0, 0.25)
        alpha, sigma = s.coefficients(t, x_t)
        return torch.distributions.Normal(alpha * x_t, (sigma**2 + 0.25) ** 0.5).log_prob(y).sum(1)

    guided = ClassifierGuidance(Standard(s), log_prob, takes=["y"])
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    alpha, sigma = s.at(0.4)
    p = guided(x, 0.4, y=torch.tensor(1.2, dtype=torch.float64))
    assert torch.allclose(p.mean, 0.96 + 0.2 * alpha / (alpha**2 * 0.2 + sigma**2) * (x - alpha * 0.96), rtol=1e-10)
    with pytest.raises(ValueError, match="one log-probability per row"):
        ClassifierGuidance(Standard(s), lambda x, t: x)(x, 0.4)


def test_a_denoiser_may_be_asked_under_another_schedule():
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    inner = Mixed(VPLinear())
    labels = torch.zeros(5, dtype=torch.int64)
    for other in (EDM(), VE(), DiscreteSchedule.cosine()):
        want = Mixed(other)
        for t in (0.5, torch.linspace(0.2, 0.9, 5, dtype=torch.float64)):
            got = inner.on(other)(x, t, class_labels=labels)
            assert torch.allclose(got.mean, want(x, t, class_labels=labels).mean, rtol=1e-9)
            assert torch.allclose(got.eps, want(x, t, class_labels=labels).eps, rtol=1e-8, atol=1e-10)
    assert isinstance(inner.on(EDM()), Rescheduled)


def test_edm_preconditioning_changes_schedule_without_a_wrapper_and_shares_the_network():
    d = EDMDenoiser(nn.Identity(), VPLinear(), shape=(2,))
    other = d.on(EDM())
    assert isinstance(other, EDMDenoiser)
    assert other.network is d.network
    assert isinstance(d.schedule, VPLinear)
    assert isinstance(other.schedule, EDM)


def test_a_network_with_doubled_channels_is_read_by_its_first_half():
    class Doubled(nn.Module):
        def forward(self, x, label):
            return torch.cat([x, 7 * x], 1)

    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(denoiser(Doubled(), VPLinear())(x, 0.5).eps, x)


def test_a_half_precision_network_answers_in_the_dtype_of_the_data():
    network = nn.Linear(3, 3).to(torch.bfloat16)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, label):
            assert x.dtype == torch.bfloat16
            return self.inner(x)

    d = denoiser(Wrapped(), VPLinear())
    assert d(torch.randn(2, 3), 0.5).mean.dtype == torch.float32
    assert d.dtype == torch.float32


def test_labels_reach_the_network_per_row_and_scaled_as_asked():
    seen = []

    class Spy(nn.Module):
        def forward(self, x, label):
            seen.append(label)
            return x

    x = torch.zeros(3, 2)
    denoiser(Spy(), DiscreteSchedule.linear())(x, 1.0)
    denoiser(Spy(), VPLinear(), label=lambda t: 1000 * t)(x, torch.tensor([0.1, 0.2, 0.3]))
    denoiser(Spy(), EDM(), "edm")(x, 2.0)
    assert torch.allclose(seen[0], torch.full((3,), 999.0))
    assert torch.allclose(seen[1], torch.tensor([100.0, 200.0, 300.0]))
    assert torch.allclose(seen[2], torch.full((3,), 2.0).log() / 4)


class Bad(nn.Module):
    def forward(self, x, label):
        return x[:, :1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: denoiser(nn.Identity(), VPLinear(), "epsilon"), "Did you mean 'eps'"),
        (lambda: denoiser(nn.Identity(), "vp"), "schedule must be a Schedule, got str"),
        (
            lambda: denoiser(Bad(), VPLinear())(torch.zeros(2, 3), 0.5),
            r"answered shape \(2, 1\) to an input of shape \(2, 3\)",
        ),
        (lambda: EDMDenoiser(nn.Identity(), EDM(), sigma_data=0.0), "sigma_data must be positive"),
        (lambda: ClassifierFreeGuidance(denoiser(nn.Identity(), VPLinear()), 2.0), "no condition"),
    ],
)
def test_bad_denoisers_are_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
