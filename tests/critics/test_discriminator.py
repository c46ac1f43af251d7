"""Trained critics against the optimum in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trueward.critics import Discriminator, calibration, train_critic
from trueward.networks import MLP, LogitHead, UNet
from trueward.objectives.times import ImportanceTimes
from trueward.schedules import EDM, VPLinear


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x, label):
        return self.net(torch.cat([x, label[:, None]], 1))


@pytest.fixture(scope="module")
def trained():
    """Real N(0, 1), generated N(1, 1)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    real, generated = torch.randn(50_000, 1, generator=generator), 1 + torch.randn(50_000, 1, generator=generator)
    critic = Discriminator(Small(), sigma_data=1.0)
    record = train_critic(critic, real, generated, steps=3000, batch_size=1024, lr=5e-3, evaluate_every=500)
    return critic, record


@pytest.mark.parametrize(("sigma", "optimum"), [(0.01, 0.581726), (1.0, 0.634269), (3.0, 0.680801), (10.0, 0.691911)])
def test_the_cross_entropy_reaches_its_optimum_at_every_noise_level(trained, sigma, optimum):
    # not below it either: that would be a leak of the label
    generator = torch.Generator().manual_seed(2)
    spread = math.sqrt(1 + sigma**2)
    real, generated = (m + spread * torch.randn(400_000, 1, generator=generator) for m in (0.0, 1.0))
    losses = [
        nn.functional.softplus(sign * trained[0].log_ratio(x, sigma, schedule=EDM())).mean().item()
        for sign, x in ((-1.0, real), (1.0, generated))
    ]
    assert sum(losses) / 2 == pytest.approx(optimum, abs=0.005)
    assert sum(losses) / 2 > optimum - 0.003


def test_the_slope_of_the_logit_is_that_of_the_log_ratio(trained):
    gradient, _ = trained[0].gradient(torch.linspace(-1, 2, 7)[:, None], 1.0, schedule=EDM())
    assert torch.allclose(gradient, torch.full_like(gradient, -0.5), atol=0.08)


def test_the_report_is_calibrated_and_blind_at_large_noise(trained):
    report = trained[1].calibration
    assert report.accuracy[0] == pytest.approx(0.691, abs=0.03)
    assert report.accuracy[-1] == pytest.approx(0.5, abs=0.03)
    assert report.cross_entropy[-1] == pytest.approx(math.log(2), abs=0.003)
    for predicted, observed, count in zip(report.predicted, report.observed, report.count):
        for p, o, n in zip(predicted, observed, count):
            if n > 300:
                assert o == pytest.approx(p, abs=0.04 + 4 * math.sqrt(p * (1 - p) / n))


def test_times_are_uniform_in_log_snr_with_the_published_quartiles():
    s = VPLinear(t_min=1e-5)
    u = torch.linspace(0.5e-5, 1 - 0.5e-5, 100_000, dtype=torch.float64)
    t = ImportanceTimes().quantile(u, s)
    log_sigma = -0.5 * s.log_snr(t)
    quartiles = torch.quantile(log_sigma, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    assert quartiles.tolist() == pytest.approx([-3.924, -0.941, 2.042], abs=0.01)
    assert t.median().item() == pytest.approx(0.1144, abs=0.001)
    assert t.min() >= 9.9e-6


def test_training_stops_when_the_held_out_loss_rises_and_keeps_the_best_weights():
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.randn(60, 8, generator=generator), torch.randn(60, 8, generator=generator)
    torch.manual_seed(0)
    critic = Discriminator(LogitHead(MLP(8, width=64, depth=2)), sigma_data=1.0)
    record = train_critic(critic, real, generated, steps=2000, batch_size=32, lr=3e-3, evaluate_every=50, patience=3)
    assert record.steps < 2000
    assert record.best_step == min(record.history, key=lambda h: h["held_out"])["step"]
    assert not any(p.requires_grad for p in critic.parameters())


def test_a_head_on_a_frozen_trunk_leaves_the_trunk_alone_and_passes_gradients_to_x():
    trunk = UNet(channels=1, size=8, width=8, multipliers=(1, 2), blocks=1, attention=())
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    critic = Discriminator(LogitHead(trunk, frozen=True), shape=(1, 8, 8))
    real, generated = torch.rand(64, 1, 8, 8), -torch.rand(64, 1, 8, 8)
    record = train_critic(critic, real, generated, steps=60, batch_size=32, evaluate_every=30)
    assert all(torch.equal(before[k], v) for k, v in trunk.state_dict().items())
    assert record.calibration.accuracy[0] > 0.9
    gradient, _ = critic.gradient(real[:4], 0.1, schedule=EDM())
    assert gradient.abs().sum() > 0


def test_a_conditional_critic_tells_classes_apart():
    # real: x = class; generated: x = 1 - class. Without the label there is nothing to see
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (4000,), generator=generator)
    noise = 0.1 * torch.randn(4000, 1, generator=generator)
    torch.manual_seed(0)
    critic = Discriminator(LogitHead(MLP(1, width=32, depth=1, num_classes=2)), num_classes=2)
    train_critic(
        critic,
        labels[:, None] + noise,
        1 - labels[:, None] + noise,
        real_labels=labels,
        generated_labels=labels,
        steps=200,
        batch_size=128,
        lr=5e-3,
        evaluate_every=100,
    )
    x = torch.tensor([[1.0], [1.0]])
    logit = critic.log_ratio(x, 0.05, schedule=EDM(), class_labels=torch.tensor([1, 0]))
    assert logit[0] > 2
    assert logit[1] < -2


def test_a_critic_is_stored_as_description_and_numbers(tmp_path):
    critic = Discriminator(LogitHead(MLP(3, width=16, depth=1)), EDM(), sigma_data=0.7, shape=(3,))
    critic.network.head[-1].weight.data.normal_()
    critic.save(tmp_path, {"record": {"steps": 5}})
    back = Discriminator.load(tmp_path)
    x = torch.randn(4, 3)
    assert torch.equal(critic.eval().log_ratio(x, 1.0), back.log_ratio(x, 1.0))
    assert back.record["record"] == {"steps": 5}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["critic.json", "critic.safetensors"]
    (tmp_path / "critic.safetensors").write_bytes((tmp_path / "critic.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="cut short or damaged"):
        Discriminator.load(tmp_path)
    with pytest.raises(ValueError, match="fit-critic"):
        Discriminator.load(tmp_path / "elsewhere")


ONES = torch.ones(20, 2)


def plain(**options):
    return Discriminator(LogitHead(MLP(2, width=8, depth=1, num_classes=options.get("num_classes"))), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_critic(plain(), ONES, torch.ones(20, 3)), "generated ones"),
        (lambda: train_critic(plain(), ONES, ONES * torch.nan), "generated samples hold NaN"),
        (lambda: train_critic(plain(), ONES, ONES, batch_size=5), "must be even"),
        (lambda: train_critic(plain(), ONES, ONES, held_out=1.0), "held_out must lie between"),
        (lambda: train_critic(plain(), ONES[:1], ONES), "too few"),
        (lambda: train_critic(plain(num_classes=3), ONES, ONES), "give real_labels"),
        (lambda: train_critic(plain(num_classes=3), ONES, ONES, real_labels=[0, 1, 2, 0]), "4 entries for 20"),
        (lambda: train_critic(plain(num_classes=3), ONES, ONES, real_labels=torch.zeros(20)), "must be whole numbers"),
        (lambda: plain(num_classes=3).log_ratio(ONES, 0.5), "give class_labels"),
        (lambda: Discriminator(nn.Identity(), sigma_data=-1.0), "sigma_data must be positive"),
        (lambda: LogitHead(nn.Linear(2, 2)), "forward_features"),
    ],
)
def test_wrong_calls_are_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_report_weighs_both_classes_alike():
    critic = plain()
    report = calibration(critic, torch.ones(400, 2), torch.ones(40, 2))
    assert report.mean_cross_entropy == pytest.approx(math.log(2), abs=1e-6)
