"""Critics on a frozen extractor: what it is shown, that it stays as it is, and that the head learns the ratio."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trueward.critics import ExtractorCritic, save_critic, train_critic, with_critic
from trueward.networks import register_network
from trueward.schedules import EDM, VPCosine, VPLinear
from trueward.truth import Gaussian

F64 = torch.float64


@register_network
class Ramps(nn.Module):
    """Features of a number: fixed random ramps. Notes what it was called with, and whether a graph was recorded."""

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        self.config = {"network": "Ramps", "features": features}
        generator = torch.Generator().manual_seed(0)
        self.slope = nn.Parameter(torch.randn(1, features, generator=generator))
        self.offset = nn.Parameter(torch.randn(features, generator=generator))
        self.calls: list[tuple[torch.Tensor, torch.Tensor, bool]] = []

    def forward(self, x, time):
        features = torch.relu(x @ self.slope + self.offset)
        self.calls.append((x.detach().clone(), time.clone(), features.requires_grad))
        return features


class Foreign(Ramps):
    """The same, of a class that nobody registered."""


class Maps(nn.Module):
    """A picture to a map of features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)

    def forward(self, x, time):
        return self.conv(x) * (1.0 + time).view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def trained():
    """Real N(0, 1), generated N(1, 1)."""
    generator = torch.Generator().manual_seed(1)
    real, generated = torch.randn(6000, 1, generator=generator), 1 + torch.randn(6000, 1, generator=generator)
    torch.manual_seed(0)
    critic = ExtractorCritic(Ramps(), (1,), width=32, dropout=0.0)
    before = {k: v.clone() for k, v in critic.extractor.state_dict().items()}
    critic.extractor.calls.clear()
    train_critic(critic, real, generated, steps=400, batch_size=512, lr=1e-2, evaluate_every=400)
    return critic, before


@pytest.mark.parametrize(("sigma", "optimum"), [(0.05, 0.5820), (1.0, 0.634269), (3.0, 0.680801)])
def test_the_head_learns_the_log_ratio(trained, sigma, optimum):
    generator = torch.Generator().manual_seed(2)
    spread = math.sqrt(1 + sigma**2)
    sets = [m + spread * torch.randn(40_000, 1, generator=generator) for m in (0.0, 1.0)]
    losses = [
        nn.functional.softplus(sign * trained[0].log_ratio(x, sigma, schedule=EDM())).mean().item()
        for sign, x in zip((-1.0, 1.0), sets)
    ]
    assert sum(losses) / 2 == pytest.approx(optimum, abs=0.012)


def test_the_extractor_is_frozen_and_outside_the_graph_in_training(trained):
    critic, before = trained
    assert all(torch.equal(before[k], v) for k, v in critic.extractor.state_dict().items())
    assert not any(recorded for _, _, recorded in critic.extractor.calls)
    assert critic.train().extractor.training is False
    critic.eval()


def test_the_gradient_passes_through_the_extractor(trained):
    critic, _ = trained
    critic.extractor.calls.clear()
    gradient, _ = critic.gradient(torch.linspace(-1, 2, 7)[:, None], 1.0, schedule=EDM())
    assert critic.extractor.calls[-1][2]
    assert torch.allclose(gradient, torch.full_like(gradient, -0.5), atol=0.2)


@pytest.mark.parametrize(
    ("schedule", "scale", "sigma", "time"),
    [
        (VPLinear(t_min=1e-5), 1.0, 1.0, 0.25896026),
        (VPLinear(t_min=1e-5), 1000.0, 10.0, 676.04496),
        (VPCosine(), 1.0, 1.0, 0.49604986),
        (VPCosine(), 1.0, 10.0, 0.93604634),
    ],
)
def test_the_extractor_is_shown_x_and_the_time_of_its_own_process(schedule, scale, sigma, time):
    # an extractor of the cosine process that is told the linear time would hear 0.259 here
    critic = ExtractorCritic(Ramps(), (1,), schedule, time_scale=scale)
    critic.log_ratio(torch.tensor([[3.0]]), sigma, schedule=EDM())
    x, told, _ = critic.extractor.calls[-1]
    assert told.item() == pytest.approx(time, rel=1e-4)
    assert x.item() == pytest.approx(3.0 / math.sqrt(1 + sigma**2), rel=1e-5)


def test_maps_of_features_and_classes_are_judged_too():
    critic = ExtractorCritic(Maps(), (1, 8, 8), num_classes=3, width=16, blocks=1)
    x = torch.randn(5, 1, 8, 8)
    for parameter in critic.head.parameters():  # many of them start at zero
        parameter.data += 0.2 * torch.randn(parameter.shape)
    a, b = (critic.eval().log_ratio(x, 0.5, class_labels=torch.full((5,), k)) for k in (0, 2))
    assert a.shape == (5,)
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("cls", [Ramps, Foreign])
def test_both_parts_are_stored_and_come_back(cls, tmp_path):
    critic = ExtractorCritic(cls(8), (1,), VPCosine(), time_scale=10.0, width=16)
    critic.extractor.slope.data.normal_()
    critic.head.out[-1].weight.data.normal_()
    critic.save(tmp_path, {"record": {"steps": 5}})
    back = ExtractorCritic.load(tmp_path, None if cls is Ramps else Foreign(8))
    x = torch.randn(4, 1)
    assert torch.equal(critic.eval().log_ratio(x, 0.7), back.log_ratio(x, 0.7))
    assert back.record["record"] == {"steps": 5}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["critic.json", "critic.safetensors"]
    if cls is Foreign:
        with pytest.raises(ValueError, match="foreign class: give extractor="):
            ExtractorCritic.load(tmp_path)


def test_it_is_found_beside_the_model_it_was_trained_for(tmp_path):
    model = Gaussian([0.0], 1.0).denoiser(EDM())
    critic = ExtractorCritic(Ramps(8), (1,), width=16)
    save_critic(critic, tmp_path, model, {"sampler": "edm"})
    found = with_critic(model, tmp_path, sampler="edm")
    assert isinstance(found, ExtractorCritic)
    x = torch.randn(4, 1)
    assert torch.equal(critic.eval().log_ratio(x, 0.7), found.log_ratio(x, 0.7))
    pair = Gaussian([0.0, 0.0], 1.0).denoiser(EDM())
    with pytest.raises(ValueError, match="takes samples of shape"):
        with_critic(pair, tmp_path)


def test_an_extractor_of_a_foreign_class_is_handed_in_beside_its_model_too(tmp_path):
    model = Gaussian([0.0], 1.0).denoiser(EDM())
    critic = ExtractorCritic(Foreign(8), (1,), width=16)
    critic.extractor.slope.data.normal_()
    critic.head.out[-1].weight.data.normal_()
    save_critic(critic, tmp_path, model)
    with pytest.raises(ValueError, match="foreign class: give extractor="):
        with_critic(model, tmp_path)
    found = with_critic(model, tmp_path, extractor=Foreign(8))
    x = torch.randn(4, 1)
    assert torch.equal(critic.eval().log_ratio(x, 0.7), found.log_ratio(x, 0.7))


class Pair(nn.Module):
    def forward(self, x, time):
        return x, x


class Scalar(nn.Module):
    def forward(self, x, time):
        return x.flatten(1).sum(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ExtractorCritic(Pair(), (1,)), r"must answer features \(1, channels, ...\), got tuple"),
        (lambda: ExtractorCritic(Scalar(), (1,)), r"got \(1,\)"),
        (lambda: ExtractorCritic.load("nowhere"), "nowhere has no critic on an extractor's features"),
        (lambda: ExtractorCritic(Ramps(), (1,)).log_ratio(torch.zeros(2, 3), 0.5), r"takes samples of shape \(1,\)"),
    ],
)
def test_wrong_calls_are_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
