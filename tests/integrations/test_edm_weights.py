"""Weights with EDM's names and a description become the denoiser D(x; sigma) of the paper's table."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import trueward
from trueward.denoisers import EDMDenoiser
from trueward.integrations import from_edm, is_edm_folder, load_edm, save_edm, to_k_diffusion
from trueward.networks import DhariwalUNet, SongUNet
from trueward.noise import Noise
from trueward.samplers import sampler
from trueward.schedules import EDM

OWN = {"model_channels": 8, "num_blocks": 1, "channel_mult": [1, 2], "attn_resolutions": [4], "augment_dim": 9}
KINDS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


def network(model_type="SongUNet", label_dim=0):
    torch.manual_seed(0)
    own = {**OWN, "model_channels": 64} if model_type == "DhariwalUNet" else OWN
    made = KINDS[model_type](img_resolution=8, in_channels=1, out_channels=1, label_dim=label_dim, **own)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.eval(), own


def description(kind, model_type, own, **options):
    """As EDM's own code has it: the class and the arguments of its constructor, infinity included."""
    common = {"img_resolution": 8, "img_channels": 1, "use_fp16": False, "model_type": model_type}
    return {"class_name": f"training.networks.{kind}", **common, **own, **options}


def precond(kind, F, x, sigma, labels=None, sigma_data=0.5):
    """Table 1 of the paper, by itself."""
    s = sigma.view(-1, 1, 1, 1)
    if kind == "EDMPrecond":
        total = (s**2 + sigma_data**2).sqrt()
        inner = F(x / total, sigma.log() / 4, labels)
        return sigma_data**2 / total**2 * x + s * sigma_data / total * inner
    if kind == "VEPrecond":
        return x + s * F(x, (0.5 * sigma).log(), labels)
    beta_d, beta_min = 19.9, 0.1
    t = ((beta_min**2 + 2 * beta_d * (1 + sigma.double() ** 2).log()).sqrt() - beta_min) / beta_d
    return x - s * F(x / (1 + s**2).sqrt(), (999 * t).float(), labels)


@pytest.mark.parametrize("kind", ["EDMPrecond", "VPPrecond", "VEPrecond"])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_each_preconditioning_is_that_of_the_paper(kind, prefix):
    F, own = network()
    weights = {f"{prefix}{name}": value for name, value in F.state_dict().items()}
    denoiser = from_edm(weights, description(kind, "SongUNet", own))
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.05, 0.9, 12.0])
    with torch.no_grad():
        want = precond(kind, F, x, sigma)
    got = to_k_diffusion(denoiser)(x, sigma)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert (denoiser.shape, denoiser.data_range, denoiser.num_classes) == ((1, 8, 8), (-1.0, 1.0), None)


@pytest.mark.parametrize("model_type", list(KINDS))
def test_a_folder_is_opened_by_load_and_samples_with_classes(model_type, tmp_path):
    F, own = network(model_type, label_dim=3)
    said = description("EDMPrecond", model_type, own, label_dim=3, sigma_min=0, sigma_max=math.inf, sigma_data=0.4)
    save_file({f"model.{name}": value for name, value in F.state_dict().items()}, tmp_path / "weights.safetensors")
    (tmp_path / "edm.json").write_text(json.dumps(said))  # with the word Infinity, as Python writes it
    assert is_edm_folder(tmp_path)
    denoiser = trueward.load(tmp_path)
    assert isinstance(denoiser, EDMDenoiser)
    assert denoiser.schedule == EDM(0.002, 80.0)
    assert denoiser.num_classes == 3
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 2.0]), torch.tensor([2, 3])
    want = precond("EDMPrecond", F, x, sigma, labels, 0.4)
    torch.testing.assert_close(denoiser(x, sigma, class_labels=labels).mean, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(denoiser(x, sigma, class_labels=labels.flip(0)).mean, want, atol=1e-4)
    samples = sampler("edm", steps=4).sample(denoiser, n=2, class_labels=1)
    assert samples.x.shape == (2, 1, 8, 8)


def test_there_and_back_draws_the_same_samples(tmp_path):
    F, _ = network()
    model = EDMDenoiser(F, EDM(0.01, 50.0), sigma_data=0.3, shape=(1, 8, 8), data_range=(-1.0, 1.0))
    back = load_edm(save_edm(model, tmp_path / "out"), "cpu")
    assert (back.schedule, back.sigma_data) == (model.schedule, model.sigma_data)
    x_T = 50.0 * Noise.rows(0, 2).normal(0, (1, 8, 8))
    heun = sampler("edm", steps=3)
    assert torch.equal(heun.sample(back, x_T).x, heun.sample(model, x_T).x)
    # the weights are those of a run as well
    trueward.save_run(tmp_path / "run", model)
    assert torch.equal(heun.sample(trueward.load(tmp_path / "run"), x_T).x, heun.sample(model, x_T).x)


def test_half_precision_weights_and_a_plain_pt_file_are_read(tmp_path):
    F, own = network()
    said = description("EDMPrecond", "SongUNet", own)
    torch.save(F.state_dict(), tmp_path / "net.pt")
    x = torch.randn(1, 1, 8, 8)
    want = from_edm(F.state_dict(), said)(x, 1.0).mean
    assert torch.equal(from_edm(tmp_path / "net.pt", said)(x, 1.0).mean, want)
    half = {name: value.half() for name, value in F.state_dict().items()}
    assert torch.allclose(from_edm(half, said)(x, 1.0).mean, want, atol=1e-2)


def test_a_head_reads_the_features_of_a_named_layer():
    F, own = network()
    denoiser = from_edm(F.state_dict(), description("EDMPrecond", "SongUNet", own))
    covariance = trueward.NPRCovariance(denoiser, feature_layer="dec.8x8_block1")
    assert covariance(torch.randn(2, 1, 8, 8), 0.5).var.shape == (2, 1, 8, 8)


class Malicious:
    def __reduce__(self):
        return (print, ("code was run",))


def test_what_cannot_be_read_is_explained(tmp_path, capsys):
    F, own = network()
    state, said = F.state_dict(), description("EDMPrecond", "SongUNet", own)
    torch.save({"ema": Malicious()}, tmp_path / "evil.pt")
    for change, message in (
        ({"class_name": "EDMPrecnd"}, "Did you mean 'EDMPrecond'"),
        ({"class_name": "iDDPMPrecond"}, "not supported"),
        ({"model_type": "SongUnet"}, "Did you mean 'SongUNet'"),
        ({"chanel_mult": [1]}, "cannot be made from this description"),
        ({"model_channels": 16}, "The state dict has 'map_augment.weight' of shape"),
        ({"num_blocks": 2}, "The state dict has no weight"),
    ):
        with pytest.raises(ValueError, match=message):
            from_edm(state, {**said, **change})
    for name, message in (
        ("evil.pt", "is no plain state dict"),
        ("network.pkl", "a pickled network runs code when opened"),
        ("none.safetensors", "is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            from_edm(tmp_path / name, said)
    assert "code was run" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has no edm.json"):
        load_edm(tmp_path)
    with pytest.raises(ValueError, match=r"run.json, model_index.json or edm.json"):
        trueward.load(tmp_path)
    (tmp_path / "edm.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        trueward.load(tmp_path)
    with pytest.raises(ValueError, match="Only an EDMDenoiser around a SongUNet"):
        save_edm(trueward.denoiser(F, EDM(), "eps"), tmp_path)
