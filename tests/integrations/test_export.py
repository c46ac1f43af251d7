"""A trueward model becomes a pipeline folder from which diffusers draws our samples."""

from __future__ import annotations

import json

import pytest
import tiny_pipelines as tiny
import torch
from torch import nn

import trueward
from trueward.denoisers import ClassifierFreeGuidance, denoiser
from trueward.integrations import from_pipeline, load_pipeline, times_of_nodes, to_pipeline, visited_nodes
from trueward.networks import network
from trueward.noise import Noise
from trueward.samplers import sampler
from trueward.schedules import DiscreteSchedule, VPLinear
from trueward.times import Times

diffusers = pytest.importorskip("diffusers", reason=tiny.SKIP_DIFFUSERS)


def own_unet(**options):
    torch.manual_seed(0)
    module = network({"network": "UNet", "channels": 1, "size": 8, "width": 16, "attention": [4], **options})
    for parameter in module.parameters():  # networks start with zero output: make the test mean something
        if parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.05)
    return module.eval()


def same_samples(model, folder, steps=8):
    """diffusers' own loop on the folder, and our DDIM on its nodes, from the same noise."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    x_T = Noise.rows(0, 3).normal(0, model.shape)
    want = tiny.run_scheduler(pipe.scheduler, lambda x, t: pipe.unet(x, t).sample, x_T, steps)
    times = times_of_nodes(model.schedule, visited_nodes(pipe.scheduler.config, steps))
    got = sampler("ddim", steps=steps, grid=Times(times)).sample(model, x_T).x
    return torch.allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_network_of_diffusers_makes_a_folder_that_plain_diffusers_samples_as_we_do(prediction, tmp_path):
    schedule = DiscreteSchedule.scaled_linear(500, 0.001, 0.03)
    model = denoiser(tiny.unet(), schedule, prediction, shape=(1, 8, 8), data_range=(-1.0, 1.0)).eval()
    to_pipeline(model, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert same_samples(model, tmp_path / "out")
    back = load_pipeline(tmp_path / "out")
    x = Noise.rows(1, 2).normal(0, (1, 8, 8))
    assert torch.allclose(back(x, 0.4).mean, model(x, 0.4).mean, atol=1e-5)


@pytest.mark.parametrize("classes", [None, 3])
def test_our_own_network_makes_a_folder_that_diffusers_samples_as_we_do(classes, tmp_path):
    module = own_unet() if classes is None else own_unet(num_classes=classes)
    model = denoiser(
        module, DiscreteSchedule.linear(), shape=(1, 8, 8), data_range=(-1.0, 1.0), num_classes=classes
    ).eval()
    unconditional = model if classes is None else ClassifierFreeGuidance(model, 1.0)
    to_pipeline(model, tmp_path / "out")
    assert same_samples(unconditional, tmp_path / "out")
    back = load_pipeline(tmp_path / "out")
    assert back.num_classes == classes
    x = Noise.rows(1, 2).normal(0, (1, 8, 8))
    condition = {} if classes is None else {"class_labels": torch.tensor([0, 2])}
    assert torch.allclose(back(x, 0.4, **condition).mean, model(x, 0.4, **condition).mean, atol=1e-5)


def test_a_pipeline_goes_in_and_out_unchanged(tmp_path):
    pipe = tiny.ddpm(diffusers.DDPMScheduler(prediction_type="v_prediction"))
    out = to_pipeline(from_pipeline(pipe), tmp_path / "out", scheduler="DDPMScheduler")
    assert out.unet is pipe.unet
    assert out.scheduler.config.prediction_type == "v_prediction"
    assert torch.allclose(out.scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod, atol=1e-6)


def test_what_diffusers_cannot_say_is_refused():
    eps = denoiser(tiny.unet(), DiscreteSchedule.linear(), shape=(1, 8, 8))
    for model, message in (
        (denoiser(tiny.unet(), VPLinear(), shape=(1, 8, 8)), "only models on a DiscreteSchedule"),
        (denoiser(tiny.unet(), DiscreteSchedule.linear(label_scale=1.0), shape=(1, 8, 8)), "another time input"),
        (
            denoiser(tiny.unet(), DiscreteSchedule.linear(), "score", shape=(1, 8, 8)),
            "no scheduler for prediction='score'",
        ),
        (denoiser(tiny.unet(), DiscreteSchedule.linear()), "shape=None"),
        (ClassifierFreeGuidance(eps, 2.0, {"class_labels": 0}), "export the denoiser around the network"),
    ):
        with pytest.raises(ValueError, match=message):
            to_pipeline(model)
    with pytest.raises(ValueError, match="no scheduler 'DDIM'"):
        to_pipeline(eps, scheduler="DDIM")


def test_a_run_folder_goes_to_diffusers_and_back_with_its_samples(tmp_path):
    """trueward run -> diffusers folder -> diffusers' own pipeline, scheduler and all = our samples of the run."""
    model = denoiser(own_unet(), DiscreteSchedule.linear(), shape=(1, 8, 8), data_range=(-1.0, 1.0)).eval()
    trueward.save_run(tmp_path / "run", model)
    run = trueward.load(tmp_path / "run")
    to_pipeline(run, tmp_path / "out")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    ddim = diffusers.DDIMPipeline(pipe.unet, pipe.scheduler)
    ddim.set_progress_bar_config(disable=True)
    want = ddim(2, generator=torch.Generator().manual_seed(3), num_inference_steps=6, output_type="np").images
    x_T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    grid = Times(times_of_nodes(run.schedule, visited_nodes(pipe.scheduler.config, 6)))
    for there in (run, trueward.load(tmp_path / "out")):
        got = sampler("ddim", steps=6, grid=grid).sample(there, x_T).x
        assert torch.allclose((got / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), torch.from_numpy(want), atol=1e-4)
