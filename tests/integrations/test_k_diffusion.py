"""Models called with sigma are denoisers and denoisers are such models; samplers of that form are certified."""

from __future__ import annotations

import itertools
import sys
import types

import pytest
import torch
from torch import nn

from trueward.denoisers import ClassifierFreeGuidance
from trueward.integrations import from_k_diffusion, to_k_diffusion
from trueward.samplers import sampler
from trueward.schedules import EDM, VE, DiscreteSchedule, VPCosine, VPLinear
from trueward.truth import GaussianMixture

LAW = GaussianMixture([0.3, 0.7], [[-0.8, 0.2], [0.5, -0.1]], [[0.04, 0.1], [0.09, 0.02]])


def closed_form(x, sigma):
    """E[x_0 | x_0 + sigma eps = x] of the law, by itself."""
    sigma = torch.as_tensor(sigma).to(x).expand(len(x))
    weights, means, variances = LAW.weights, LAW.means, torch.tensor([[0.04, 0.1], [0.09, 0.02]], dtype=x.dtype)
    v = variances + sigma.view(-1, 1, 1) ** 2
    d = x[:, None] - means
    r = torch.softmax(weights.log() - 0.5 * (d**2 / v + v.log()).sum(2), 1)
    return (r[..., None] * (means + variances / v * d)).sum(1)


@pytest.mark.parametrize(
    "schedule", [EDM(), VE(), VPLinear(), VPCosine(), DiscreteSchedule.linear()], ids=lambda s: type(s).__name__
)
def test_every_denoiser_is_a_model_of_sigma(schedule):
    model = to_k_diffusion(LAW.denoiser(schedule))
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(6, 2)
    for sigma in (0.05, 0.7, 12.0):
        assert torch.allclose(model(x, sigma), closed_form(x, sigma), rtol=1e-8, atol=1e-8)
    each = torch.tensor([0.05, 0.1, 0.5, 1.0, 5.0, 12.0], dtype=torch.float64)
    assert torch.allclose(model(x, each), closed_form(x, each), rtol=1e-8, atol=1e-8)
    assert torch.equal(model(x, 0.0), x)
    assert torch.equal(model(x, each * torch.tensor([0, 1, 1, 1, 1, 1]))[0], x[0])
    assert 0 < model.sigma_min < 0.02
    assert model.sigma_max > 30


def test_a_model_of_sigma_samples_as_the_truth_does():
    denoiser = from_k_diffusion(closed_form, shape=(2,), sigma_min=0.01, sigma_max=30.0)
    assert denoiser.schedule == EDM(0.01, 30.0)
    x_T = 30.0 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    heun = sampler("edm", steps=12)
    want = heun.sample(LAW.denoiser(EDM(0.01, 30.0)), x_T).x
    assert torch.allclose(heun.sample(denoiser, x_T).x, want, atol=1e-5)


def test_there_and_back_is_the_same_model():
    model = to_k_diffusion(from_k_diffusion(closed_form, shape=(2,)))
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(6, 2)
    assert torch.allclose(model(x, 0.7), closed_form(x, 0.7), atol=1e-6)


def test_the_range_of_sigma_is_what_the_model_says():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("sigmas", torch.tensor([0.03, 1.0, 14.6]))
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x, sigma):
            return x * self.weight

    assert from_k_diffusion(Table().eval()).schedule == EDM(0.029999999329447746, 14.600000381469727)
    assert from_k_diffusion(Table(), sigma_max=5.0).schedule.sigma_max == 5.0
    assert not from_k_diffusion(Table().eval()).training
    assert from_k_diffusion(lambda x, sigma: x).schedule == EDM()


def test_conditions_pass_through_in_both_directions():
    seen = []

    def conditional(x, sigma, class_labels, scale=1.0):
        seen.append((class_labels.tolist(), scale))
        return x * 0

    denoiser = from_k_diffusion(conditional, num_classes=3, shape=(2,))
    to_k_diffusion(denoiser)(torch.zeros(2, 2), 1.0, class_labels=torch.tensor([1, 2]), scale=3.0)
    assert seen == [([1, 2], 3.0)]
    ClassifierFreeGuidance(denoiser, 2.0)(torch.zeros(2, 2), 1.0, class_labels=torch.tensor([1, 2]))
    assert seen[-1][0] == [3, 3, 1, 2]


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="model must be callable"):
        from_k_diffusion(3)
    with pytest.raises(ValueError, match="must be a trueward Denoiser, got function"):
        to_k_diffusion(closed_form)


def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's method in sigma."""
    ones = x.new_ones([len(x)])
    for here, there in itertools.pairwise(sigmas):
        x = x + (x - model(x, here * ones)) / here * (there - here)
    return x


def sample_heun(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Claims to be Heun's method, and is Euler's."""
    return sample_euler(model, x, sigmas)


def test_samplers_of_this_form_are_certified(monkeypatch):
    from trueward.certification import certify
    from trueward.integrations.k_diffusion_samplers import subject

    package, sampling = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.sampling")
    sampling.sample_euler, sampling.sample_heun = sample_euler, sample_heun
    sampling.sample_dpm_fast = lambda model, x, sigma_min, sigma_max, n: x
    monkeypatch.setitem(sys.modules, "k_diffusion", package)
    monkeypatch.setitem(sys.modules, "k_diffusion.sampling", sampling)
    short = {"schedules": {"vp-linear": VPLinear()}, "steps": (20, 40, 80)}
    good = certify(subject("sample_euler"), **short)
    assert good["convergence"].verdict == "pass", good
    bad = certify(subject("sample_heun"), **short)
    assert bad["convergence"].verdict == "FAIL", bad
    with pytest.raises(ValueError, match="Did you mean 'sample_euler'"):
        subject("sample_eulr")
    with pytest.raises(ValueError, match="chooses its own noise levels"):
        subject("sample_dpm_fast")


def test_a_missing_library_is_explained(monkeypatch):
    from trueward.integrations.k_diffusion_samplers import subject

    monkeypatch.setitem(sys.modules, "k_diffusion", None)
    monkeypatch.delitem(sys.modules, "k_diffusion.sampling", raising=False)
    with pytest.raises(ValueError, match="needs the package k_diffusion"):
        subject("sample_euler")
