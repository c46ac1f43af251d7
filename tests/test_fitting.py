"""A critic from nothing: storage of the two sets, networks, interruption, what is stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trueward.critics import Discriminator, FeatureCritic, with_critic
from trueward.data import Dataset, load_data
from trueward.data.rows import Quantised
from trueward.denoisers import Denoiser, denoiser
from trueward.drawing import Drawing
from trueward.fitting import critic_for, fit_critic, generated_set, storage_of
from trueward.networks import MLP
from trueward.samplers import DDIM
from trueward.schedules import EDM, VPLinear
from trueward.shards import ShardFolder, sample_to_folder


def model(shape: tuple[int, ...] = (1, 8, 8), num_classes: int | None = None, range_: bool = True) -> Denoiser:
    torch.manual_seed(0)
    network = MLP(list(shape), width=16, depth=1, num_classes=num_classes)
    torch.nn.init.normal_(network.out[-1].weight, std=0.3)
    known = {"data_range": (-1.0, 1.0)} if range_ else {}
    return denoiser(network, EDM(), "edm", shape=shape, num_classes=num_classes, **known).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


def test_generated_samples_get_the_grey_levels_of_the_real_ones(digits: Dataset, tmp_path: Path):
    sample_to_folder(Drawing(model(), DDIM(steps=3)), 40, tmp_path / "s", dtype=storage_of(digits), shard_size=16)
    fakes = generated_set(tmp_path / "s", digits)
    assert len(fakes) == 40
    raw, _ = ShardFolder(tmp_path / "s").load()
    assert raw.unique().numel() > 100  # what the sampler made, not yet rounded
    levels = digits.x.unique()
    assert set(fakes.x.unique().tolist()) <= set(levels.tolist())  # bit for bit the same values
    assert (fakes.x - raw.clamp(-1, 1)).abs().max() <= 1 / 16 + 1e-6


def test_bytes_are_stored_as_bytes_and_continuous_values_as_they_are(tmp_path: Path):
    codes = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    images = Dataset(Quantised(codes, 256, (-1.0, 1.0)), data_range=(-1.0, 1.0))
    assert storage_of(images) == "uint8"
    sample_to_folder(Drawing(model(), DDIM(steps=3)), 20, tmp_path / "s", dtype="uint8")
    fakes = generated_set(tmp_path / "s", images)
    scaled = (fakes.x + 1) * 127.5
    assert torch.allclose(scaled, scaled.round(), atol=1e-4)
    vectors = Dataset(torch.randn(50, 3))
    assert storage_of(vectors) == "float32"
    sample_to_folder(Drawing(model((3,), range_=False), DDIM(steps=3)), 20, tmp_path / "v")
    raw, _ = ShardFolder(tmp_path / "v").load()
    assert torch.equal(generated_set(tmp_path / "v", vectors).x, raw)


def test_samples_of_an_archive_are_taken_with_their_labels(digits: Dataset, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "s.npz", x=pixels, y=np.arange(30) % 10)
    fakes = generated_set(tmp_path / "s.npz", digits)
    assert fakes.labels.tolist() == [k % 10 for k in range(30)]
    assert fakes.x.unique().numel() <= 17
    np.savez(tmp_path / "t.npz", x=pixels[:, :4], y=np.arange(30) % 10)
    with pytest.raises(ValueError, match="the real ones"):
        generated_set(tmp_path / "t.npz", digits)


def test_networks_fit_the_shape_and_small_sets_get_more_dropout(digits: Dataset):
    image = critic_for(model(), digits)
    assert type(image.network.trunk).__name__ == "HalfUNet"
    assert image.network.config["dropout"] == 0.2
    assert image.shape == (1, 8, 8)
    vectors = critic_for(model((3,), range_=False), Dataset(torch.randn(25_000, 3)))
    assert type(vectors.network.trunk).__name__ == "MLP"
    assert vectors.network.config["dropout"] == 0.1
    assert vectors.sigma_data == pytest.approx(1.0, abs=0.05)
    assert isinstance(critic_for(model(), digits, "features"), FeatureCritic)
    assert critic_for(model(num_classes=10), digits, conditional=True).num_classes == 10
    same = [critic_for(model(), digits, seed=s).network.state_dict() for s in (0, 0, 1)]
    assert all(torch.equal(value, same[1][name]) for name, value in same[0].items())
    assert any(not torch.equal(value, same[2][name]) for name, value in same[0].items())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 48), (3, 5, 5), (1, 2, 2)])
def test_pictures_of_any_size_are_judged(shape: tuple[int, ...]):
    critic = critic_for(model(shape), Dataset(torch.rand(20, *shape) * 2 - 1, data_range=(-1.0, 1.0)))
    assert critic.log_ratio(torch.randn(2, *shape), 1.0).shape == (2,)


def test_a_process_that_reaches_data_without_noise_gets_a_critic_that_does_not():
    mine = model((3,), range_=False).on(VPLinear(t_min=0.0))
    assert bool(mine.schedule.log_snr(0.0).isinf())
    critic = critic_for(mine, Dataset(torch.randn(50, 3)))
    assert bool(critic.schedule.log_snr(critic.schedule.t_min).isfinite())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "half_unet"}, "Did you mean 'half-unet'"),
        ({"conditional": True}, "needs classes, but the model knows none"),
    ],
)
def test_networks_that_do_not_fit_are_refused(digits: Dataset, options, message):
    with pytest.raises(ValueError, match=message):
        critic_for(model(), digits, **options)
    with pytest.raises(ValueError, match="half-unet takes images"):
        critic_for(model((3,)), Dataset(torch.randn(20, 3)), "half-unet")


SMALL = {"n": 60, "updates": 20, "batch_size": 32, "evaluate_every": 10, "width": 8}


def test_an_interrupted_fit_continues_with_the_same_samples_and_the_same_critic(digits: Dataset, tmp_path: Path):
    drawing = Drawing(model(), DDIM(steps=3), 4)
    whole, record, _ = fit_critic(model(), digits, tmp_path / "whole", drawing=drawing, **SMALL)

    class Power(Exception):
        pass

    def cut(*_: object) -> None:
        raise Power

    with pytest.raises(Power):  # while generating: no shard is there yet
        fit_critic(model(), digits, tmp_path / "cut", drawing=drawing, on_sample=cut, **SMALL)
    with pytest.raises(Power):  # while training: after the first check
        fit_critic(model(), digits, tmp_path / "cut", drawing=drawing, on_check=cut, **SMALL)
    made = (tmp_path / "cut/critic/generated/shard-00000.safetensors").stat().st_mtime_ns
    again, continued, _ = fit_critic(model(), digits, tmp_path / "cut", drawing=drawing, **SMALL)
    assert (tmp_path / "cut/critic/generated/shard-00000.safetensors").stat().st_mtime_ns == made
    assert continued.history == record.history
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    assert not list((tmp_path / "cut/critic").glob("*.pt"))


def test_what_is_stored_says_where_the_critic_comes_from(digits: Dataset, tmp_path: Path):
    drawing = Drawing(model(), DDIM(steps=3), 4)
    fit_critic(model(), digits, tmp_path, drawing=drawing, facts={"sampler": "ddim (3 steps)"}, **SMALL)
    facts = json.loads((tmp_path / "critic/critic.json").read_text())
    assert facts["sampler"] == "ddim (3 steps)"
    assert facts["generated"]["n"] == 60
    assert facts["generated"]["seed"] == 4
    assert facts["training"]["steps"] == 20
    assert len(facts["training"]["calibration"]["accuracy"]) == 8
    assert facts["data"]["name"] == "digits"
    assert isinstance(with_critic(model(), tmp_path), Discriminator)


def test_sets_that_hardly_can_be_right_are_noted(digits: Dataset, tmp_path: Path):
    np.savez(
        tmp_path / "s.npz",
        x=np.full((30, 8, 8, 1), 255, dtype=np.uint8) - np.arange(30, dtype=np.uint8)[:, None, None, None],
    )
    with pytest.warns(UserWarning, match="range of values") as said:
        fit_critic(model(), digits, tmp_path, generated=tmp_path / "s.npz", **{**SMALL, "n": None})
    text = " ".join(str(w.message) for w in said)
    assert "30 generated samples for 1500 real ones" in text
    assert "do both have one range of values?" in text


def test_data_of_another_shape_and_a_missing_drawing_are_refused(digits: Dataset, tmp_path: Path):
    with pytest.raises(ValueError, match=r"have shape \(1, 8, 8\), the model makes \(3,\)"):
        fit_critic(model((3,)), digits, tmp_path)
    with pytest.raises(ValueError, match="Give a drawing to generate with, or generated samples"):
        fit_critic(model(), digits, tmp_path)
    assert not list(tmp_path.iterdir())
