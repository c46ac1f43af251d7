"""Pipelines read as denoisers: our samplers and plain diffusers code agree from the same noise."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import tiny_pipelines as tiny
import torch

import trueward
from trueward.denoisers import ClassifierFreeGuidance
from trueward.integrations import LatentDenoiser, from_pipeline, load_pipeline, times_of_nodes, visited_nodes
from trueward.noise import Noise
from trueward.samplers import sampler
from trueward.times import Times

diffusers = pytest.importorskip("diffusers", reason=tiny.SKIP_DIFFUSERS)


def eps_network(model):
    return lambda x, t: model(x, t).sample


def start(denoiser, n=3, seed=0):
    return Noise.rows(seed, n).normal(0, denoiser.shape)


def grid(denoiser, scheduler, steps):
    """The nodes that the scheduler visits, as a grid."""
    scheduler.set_timesteps(steps)
    return Times(times_of_nodes(denoiser.schedule, scheduler.timesteps.numpy().round().astype(int)))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "table",
    [{}, {"beta_schedule": "scaled_linear"}, {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200}],
)
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_agrees_with_diffusers(prediction, table, clip):
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=clip, **table)
    pipe = tiny.ddpm(scheduler)
    denoiser = from_pipeline(pipe)
    x_T = start(denoiser)
    want = tiny.run_scheduler(scheduler, eps_network(pipe.unet), x_T, 10)
    nodes = visited_nodes(scheduler.config, 10)
    ddim = sampler("ddim", steps=10, grid=Times(times_of_nodes(denoiser.schedule, nodes)), clip=clip)
    assert torch.allclose(ddim.sample(denoiser, x_T).x, want, atol=1e-4)


def test_ddpm_agrees_with_diffusers_from_the_same_noise_draws(monkeypatch):
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=60, beta_end=0.2)
    pipe = tiny.ddpm(scheduler)
    denoiser = from_pipeline(pipe)
    x_T, noise, drawn = start(denoiser), Noise.rows(0, 3), []

    def draw(shape, generator=None, device=None, dtype=None, layout=None):
        drawn.append(1)
        return noise.normal(len(drawn), shape[1:])

    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", draw)
    want = tiny.run_scheduler(scheduler, eps_network(pipe.unet), x_T, 60)
    assert len(drawn) == 59
    got = sampler("ddpm", steps=60).sample(denoiser, x_T, seed=0).x
    assert torch.allclose(got, want, atol=1e-4)
    assert not torch.allclose(got, sampler("ddpm", steps=60).sample(denoiser, x_T, seed=1).x, atol=0.1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_dpm_solver_plus_plus_2m_agrees_with_diffusers(prediction, solver_type):
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type=prediction, solver_type=solver_type)
    pipe = tiny.ddpm(scheduler)
    denoiser = from_pipeline(pipe)
    x_T = start(denoiser)
    want = tiny.run_scheduler(scheduler, eps_network(pipe.unet), x_T, 12)
    ours = sampler(
        "dpm-solver++",
        steps=11,
        grid=grid(denoiser, scheduler, 12),
        solver_type={"midpoint": "dpmsolver", "heun": "taylor"}[solver_type],
        lower_order_final=False,
        denoise_to_zero=True,
    )
    assert torch.allclose(ours.sample(denoiser, x_T).x, want, atol=1e-4)


def test_heun_agrees_with_diffusers():
    scheduler = diffusers.HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="leading")
    pipe = tiny.ddpm(diffusers.DDPMScheduler())
    denoiser = from_pipeline(pipe)
    x_T = start(denoiser)
    scheduler.set_timesteps(10)
    nodes = scheduler.timesteps.unique().flip(0).numpy().astype(int)
    times = times_of_nodes(denoiser.schedule, nodes)
    alpha = denoiser.schedule.at(times[0])[0]
    want = tiny.run_scheduler(scheduler, eps_network(pipe.unet), x_T / alpha, 10)
    assert torch.allclose(sampler("edm", steps=10, grid=Times(times)).sample(denoiser, x_T).x, want, atol=1e-4)


def test_a_network_that_learned_its_variance_is_read_by_its_mean():
    scheduler = diffusers.DPMSolverMultistepScheduler(variance_type="learned_range")
    pipe = tiny.ddpm(scheduler, channels=3, out_channels=6)
    denoiser = from_pipeline(pipe)
    x_T = start(denoiser)
    want = tiny.run_scheduler(scheduler, eps_network(pipe.unet), x_T, 8)
    options = {"lower_order_final": False, "denoise_to_zero": True, "grid": grid(denoiser, scheduler, 8)}
    assert torch.allclose(sampler("dpm-solver++", steps=7, **options).sample(denoiser, x_T).x, want, atol=1e-4)


def test_edm_preconditioning_is_that_of_diffusers():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=20.0, sigma_data=0.7)
    pipe = tiny.ddpm(scheduler)
    denoiser = from_pipeline(pipe)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for sigma in (0.05, 3.0):
        answer = pipe.unet(
            scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(torch.tensor(sigma))
        ).sample
        want = scheduler.precondition_outputs(x, answer, torch.tensor(sigma))
        assert torch.allclose(denoiser(x, sigma).mean, want, atol=1e-5)


def test_a_flow_matching_pipeline_moves_along_the_predicted_velocity():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = tiny.ddpm(scheduler)
    denoiser = from_pipeline(pipe)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    velocity = pipe.unet(x, 300.0).sample
    p = denoiser(x, 0.3)
    assert torch.allclose(p.eps - p.mean, velocity, atol=1e-5)
    assert torch.allclose(p.mean, x - 0.3 * velocity, atol=1e-5)


def test_class_labels_reach_the_network_and_a_missing_null_class_is_explained():
    pipe = tiny.ddpm(num_class_embeds=4)
    with_null, without = from_pipeline(pipe, null_class=True), from_pipeline(pipe)
    assert (with_null.num_classes, without.num_classes) == (3, 4)
    x, labels = start(without), torch.tensor([0, 1, 2])
    want = pipe.unet(x, 499, class_labels=labels).sample
    for denoiser in (with_null, without):
        assert torch.allclose(
            denoiser(x, denoiser.schedule.time_of_node(499), class_labels=labels).eps, want, atol=1e-5
        )
    t = with_null.schedule.time_of_node(499)
    nothing = pipe.unet(x, 499, class_labels=torch.full((3,), 3)).sample
    assert torch.allclose(with_null(x, t).eps, nothing, atol=1e-5)
    guided = ClassifierFreeGuidance(with_null, 2.0)(x, t, class_labels=labels).eps
    assert torch.allclose(guided, nothing + 2.0 * (want - nothing), atol=1e-5)
    with pytest.raises(ValueError, match=r"no 'no class'.*null_class=True"):
        without(x, t)
    with pytest.raises(ValueError, match="no 'no class'"):
        sampler("ddim", steps=3).sample(without, n=2)


def test_a_dit_pipeline_is_a_guided_latent_model():
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=8, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        patch_size=2, num_embeds_ada_norm=5, norm_num_groups=4,
    ).eval()  # fmt: skip
    vae = tiny.stable_diffusion().vae
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=diffusers.DDIMScheduler())
    denoiser = from_pipeline(pipe)
    assert denoiser.num_classes == 5
    x = start(denoiser, 2)
    want = transformer(x, timestep=torch.full((2,), 99), class_labels=torch.tensor([3, 1])).sample[:, :4]
    assert torch.allclose(denoiser(x, 0.1, class_labels=torch.tensor([3, 1])).eps, want, atol=1e-5)
    images = denoiser.decode(sampler("ddim", steps=2).sample(denoiser, n=2, class_labels=3).x)
    assert images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_guided_text_pipeline_gives_diffusers_images(prediction):
    pipe = tiny.stable_diffusion(prediction)
    pipe.set_progress_bar_config(disable=True)
    denoiser = from_pipeline(pipe)
    assert isinstance(denoiser, LatentDenoiser)
    latents = start(denoiser, 2)
    want = pipe(
        "a cat", negative_prompt="dog", num_images_per_prompt=2, num_inference_steps=5, guidance_scale=3.0,
        latents=latents, output_type="pt",
    ).images  # fmt: skip
    nodes = visited_nodes(pipe.scheduler.config, 5)
    # this configuration ends at the first node of the table (set_alpha_to_one=False), one Euler step short of the data
    times = (*times_of_nodes(denoiser.schedule, nodes), denoiser.schedule.t_min)
    ours = sampler("dpm-solver++", order=1, steps=5, grid=Times(times))
    samples = ours.sample(denoiser.guided(3.0, "dog"), latents, **denoiser.condition("a cat", n=2))
    assert torch.allclose((denoiser.decode(samples.x) / 2 + 0.5).clamp(0, 1), want, atol=1e-4)


def test_a_stable_diffusion_xl_pipeline_is_told_the_sizes():
    pipe = tiny.stable_diffusion_xl()
    pipe.set_progress_bar_config(disable=True)
    denoiser = from_pipeline(pipe)
    latents = start(denoiser, 2)
    want = pipe(
        ["a cat", "a dog"], num_inference_steps=3, guidance_scale=1.0, latents=latents, output_type="latent"
    ).images  # fmt: skip
    grid = Times((*times_of_nodes(denoiser.schedule, visited_nodes(pipe.scheduler.config, 3)), denoiser.schedule.t_min))
    ours = sampler("dpm-solver++", order=1, steps=3, grid=grid)
    got = ours.sample(denoiser, latents, **denoiser.condition(["a cat", "a dog"])).x
    assert torch.allclose(got, want, atol=1e-4)
    assert ours.sample(denoiser.guided(2.0), n=2, **denoiser.condition("cat", n=2)).x.isfinite().all()


def test_latents_are_scaled_as_diffusers_scales_them():
    pipe = tiny.stable_diffusion()
    denoiser = from_pipeline(pipe)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    want = pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert torch.allclose(denoiser.encode(images), want, atol=1e-6)
    one, two = (denoiser.encode(images, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert not torch.allclose(one, two)


def test_prompts_are_one_for_all_or_one_for_each():
    denoiser = from_pipeline(tiny.stable_diffusion())
    both = denoiser.condition(["cat", "dog"])["encoder_hidden_states"]
    cats = denoiser.condition("cat", n=3)["encoder_hidden_states"]
    assert cats.shape == (3, 16, 16)
    assert torch.allclose(cats, both[:1].expand(3, -1, -1), atol=1e-6)
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    with pytest.raises(ValueError, match="2 prompts were given for 3 samples"):
        denoiser.condition(["cat", "dog"], n=3)
    with pytest.raises(ValueError, match="needs a prompt"):
        denoiser(torch.zeros(1, 4, 8, 8), 0.5)


def test_a_half_precision_pipeline_samples_in_float32():
    denoiser = from_pipeline(tiny.stable_diffusion(dtype=torch.bfloat16))
    single = from_pipeline(tiny.stable_diffusion())
    guided = denoiser.guided(2.0)
    x = sampler("dpm-solver++", steps=3).sample(guided, n=2, **denoiser.condition("cat", n=2)).x
    want = sampler("dpm-solver++", steps=3).sample(single.guided(2.0), n=2, **single.condition("cat", n=2)).x
    assert x.dtype == torch.float32
    assert (x - want).abs().mean() < 0.05 * want.abs().mean()


def test_folders_are_read_back(tmp_path):
    pipe = tiny.ddpm(diffusers.DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"))
    pipe.save_pretrained(tmp_path / "pixel")
    x = start(from_pipeline(pipe))
    for loaded in (load_pipeline(tmp_path / "pixel", device="cpu"), from_pipeline(str(tmp_path / "pixel"))):
        assert not loaded.training
        assert loaded.schedule == from_pipeline(pipe).schedule
        assert torch.allclose(loaded(x, 0.5).mean, from_pipeline(pipe)(x, 0.5).mean, atol=1e-6)
    by_name = trueward.load(tmp_path / "pixel")
    assert torch.equal(by_name(x, 0.5).mean, loaded(x, 0.5).mean)
    assert by_name.record["pipeline"] == "DDPMPipeline"
    text = tiny.stable_diffusion()
    text.save_pretrained(tmp_path / "text")
    index = json.loads((tmp_path / "text" / "model_index.json").read_text())
    loaded = load_pipeline(tmp_path / "text")
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert torch.allclose(
        loaded.condition("cat")["encoder_hidden_states"], from_pipeline(text).condition("cat")["encoder_hidden_states"]
    )


def test_bad_folders_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"not a diffusers pipeline folder: it has no model_index.json"):
        load_pipeline(tmp_path)
    pipe = tiny.ddpm()
    pipe.save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="could not be read"):
        load_pipeline(tmp_path / "cut")
    pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(ValueError, match="could not be read"):
        load_pipeline(tmp_path / "pickled")
    (tmp_path / "cut" / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_pipeline(tmp_path / "cut")


def test_unsupported_pipelines_are_explained():
    pipe = tiny.ddpm()
    pipe.unet.config.in_channels = 1
    with pytest.raises(ValueError, match=r"shape must be \(1, height, width\)"):
        from_pipeline(pipe, shape=(3, 8, 8))

    with pytest.raises(ValueError, match="SimpleNamespace has no network and scheduler"):
        from_pipeline(SimpleNamespace(components={"scheduler": None}))
    wrong = tiny.ddpm()
    wrong.unet = tiny.stable_diffusion().vae
    with pytest.raises(ValueError, match="AutoencoderKL is not supported"):
        from_pipeline(wrong)
