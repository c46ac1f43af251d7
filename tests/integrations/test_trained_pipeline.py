"""A pipeline that plain diffusers code trained on MNIST: the same noise gives the same images there and here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny_pipelines as tiny
import torch
import trained_pipeline

import trueward
from trueward.integrations import times_of_nodes, visited_nodes
from trueward.noise import Noise
from trueward.samplers import sampler
from trueward.times import Times

diffusers = pytest.importorskip("diffusers", reason=tiny.SKIP_DIFFUSERS)

TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained here (about 15 s), or the folder that TRUEWARD_DDPM_MNIST names."""
    if os.environ.get("TRUEWARD_DDPM_MNIST"):
        return Path(os.environ["TRUEWARD_DDPM_MNIST"])
    return trained_pipeline.train(tmp_path_factory.mktemp("pipelines") / "ddpm-mnist")


@pytest.fixture(scope="session")
def pipe(folder):
    return diffusers.DDPMPipeline.from_pretrained(folder)


@pytest.fixture(scope="session")
def denoiser(folder):
    return trueward.load(folder)


def network_of(pipe):
    return lambda x, t: pipe.unet(x, t).sample


def start(denoiser, n=2):
    return Noise.rows(0, n).normal(0, denoiser.shape)


def on_nodes(denoiser, nodes):
    return Times(times_of_nodes(denoiser.schedule, nodes))


def same(ours, theirs):
    """Images that are worth comparing, and equal."""
    assert theirs.std() > 0.1
    assert (theirs[0] - theirs[1]).std() > 0.05, "both samples are the same"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def test_what_diffusers_trained_is_read_as_it_was_trained(pipe, denoiser):
    """The training loss of the network, through our schedule and through diffusers' scheduler, on images it has not seen."""
    images = trueward.load_data("mnist", split="test").batch(torch.arange(16))["x"]
    noise, nodes = Noise.rows(0, 16).normal(0, denoiser.shape), torch.arange(16) * 40 + 100
    with torch.no_grad():
        theirs = pipe.unet(pipe.scheduler.add_noise(images, noise, nodes), nodes).sample
        t = denoiser.schedule.time_of_node(nodes)
        ours = denoiser(denoiser.schedule.add_noise(images, t, noise), t).eps
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    assert (ours - noise).square().mean() < 0.2  # 1 for a network that has learned nothing
    assert (denoiser.shape, denoiser.data_range) == ((1, 28, 28), (-1.0, 1.0))


@pytest.mark.parametrize("steps", [7, 20])
def test_ddim_draws_the_images_of_diffusers(pipe, denoiser, steps):
    scheduler, x_T = diffusers.DDIMScheduler.from_config(pipe.scheduler.config), start(denoiser)
    want = tiny.run_scheduler(scheduler, network_of(pipe), x_T, steps)
    grid = on_nodes(denoiser, visited_nodes(scheduler.config, steps))
    same(sampler("ddim", steps=steps, grid=grid).sample(denoiser, x_T).x, want)


def test_the_ddim_pipeline_itself_draws_the_images_that_we_draw(pipe, denoiser):
    """Nothing of the loop is ours: the pipeline draws x_T from the generator and returns images in [0, 1]."""
    ddim = diffusers.DDIMPipeline(pipe.unet, diffusers.DDIMScheduler.from_config(pipe.scheduler.config))
    ddim.set_progress_bar_config(disable=True)
    want = ddim(
        batch_size=2, generator=torch.Generator().manual_seed(1), num_inference_steps=10, output_type="np"
    ).images
    x_T = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    grid = on_nodes(denoiser, visited_nodes(ddim.scheduler.config, 10))
    got = sampler("ddim", steps=10, grid=grid).sample(denoiser, x_T).x
    torch.testing.assert_close(
        (got / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), torch.from_numpy(want), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_draws_the_images_of_diffusers_from_the_same_noise_draws(pipe, denoiser, variance, monkeypatch):
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config, variance_type=variance)
    x_T, noise, drawn = start(denoiser), Noise.rows(0, 2), []

    def draw(shape, generator=None, device=None, dtype=None, layout=None):
        drawn.append(shape)
        return noise.normal(len(drawn), shape[1:])

    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", draw)
    want = tiny.run_scheduler(scheduler, network_of(pipe), x_T, 50)
    assert len(drawn) == 49
    grid = on_nodes(denoiser, visited_nodes(scheduler.config, 50))
    ours = sampler("ddpm", steps=50, grid=grid, variance={"fixed_small": "beta-tilde", "fixed_large": "beta"}[variance],
                   clip_sigma_steps=0)  # fmt: skip
    same(ours.sample(denoiser, x_T, seed=0).x, want)


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_dpm_solver_plus_plus_2m_draws_the_images_of_diffusers(pipe, denoiser, spacing):
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    x_T = start(denoiser)
    want = tiny.run_scheduler(scheduler, network_of(pipe), x_T, 20)
    # diffusers' last step goes to the data: one of ours is that step
    options = {"lower_order_final": False, "denoise_to_zero": True}
    grid = on_nodes(denoiser, scheduler.timesteps.numpy())
    same(sampler("dpm-solver++", steps=19, grid=grid, **options).sample(denoiser, x_T).x, want)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_heun_draws_the_images_of_diffusers(pipe, denoiser, spacing):
    scheduler = diffusers.HeunDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing=spacing, clip_sample=False
    )
    scheduler.set_timesteps(12)
    nodes = scheduler.timesteps.unique().flip(0).numpy().astype(int)
    x_T = start(denoiser)
    grid = on_nodes(denoiser, nodes)
    want = tiny.run_scheduler(scheduler, network_of(pipe), x_T / denoiser.schedule.at(grid.times[0])[0], 12)
    same(sampler("edm", steps=12, grid=grid).sample(denoiser, x_T).x, want)


def test_unipc_of_order_one_without_corrector_is_our_first_order_solver(pipe, denoiser):
    scheduler = diffusers.UniPCMultistepScheduler.from_config(
        pipe.scheduler.config, solver_order=1, disable_corrector=list(range(20)), timestep_spacing="linspace"
    )
    x_T = start(denoiser)
    want = tiny.run_scheduler(scheduler, network_of(pipe), x_T, 20)
    grid = on_nodes(denoiser, scheduler.timesteps.numpy())
    same(sampler("dpm-solver++", order=1, steps=19, grid=grid, denoise_to_zero=True).sample(denoiser, x_T).x, want)


def test_the_example_writes_a_pipeline_folder(tmp_path):
    import importlib.util

    where = Path(__file__).parents[2] / "examples" / "diffusers_mnist.py"
    spec = importlib.util.spec_from_file_location("diffusers_mnist", where)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with torch.random.fork_rng():
        example.train(trained_pipeline.mnist_file(), tmp_path / "ddpm", minutes=0.01, batch_size=4)
    assert trueward.load(tmp_path / "ddpm").shape == (1, 28, 28)
