"""Our schedulers inside diffusers' pipelines, against diffusers' own and against our samplers."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch

from trueward.integrations import from_pipeline, times_of_nodes
from trueward.noise import Noise
from trueward.samplers import sampler
from trueward.schedules import DiscreteSchedule
from trueward.times import Times
from trueward.truth import GaussianMixture

diffusers = pytest.importorskip("diffusers", reason=tiny.SKIP_DIFFUSERS)
from trueward.integrations import TruewardAncestralScheduler, TruewardDPMSolverScheduler  # noqa: E402

BOTH = [TruewardDPMSolverScheduler, TruewardAncestralScheduler]


@pytest.fixture(scope="module")
def network():
    model = tiny.unet()
    return lambda x, t: model(x, t).sample


def start(n=3):
    return Noise.rows(0, n).normal(0, (1, 8, 8))


OPTIONS = [
    {"solver_order": 1},
    {"solver_order": 2},
    {"solver_order": 2, "solver_type": "heun"},
    {"solver_order": 3, "third_order": "reference"},
    {"solver_order": 2, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    {"solver_order": 2, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    {"solver_order": 2, "timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "sample"},
    {"solver_order": 2, "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    {"solver_order": 2, "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
    {"solver_order": 2, "euler_at_final": True, "lower_order_final": False},
    {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
]  # fmt: skip


@pytest.mark.parametrize("steps", [6, 17])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(map(str, o.values())))
def test_dpm_solver_computes_what_diffusers_does_on_the_same_timesteps(network, options, steps):
    theirs = diffusers.DPMSolverMultistepScheduler(**{k: v for k, v in options.items() if k != "third_order"})
    ours = TruewardDPMSolverScheduler(**options)
    want = tiny.run_scheduler(theirs, network, start(), steps)
    got = tiny.run_scheduler(ours, network, start(), steps)
    assert np.array_equal(ours.timesteps, theirs.timesteps)
    assert torch.allclose(got, want, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_computes_what_diffusers_does_on_its_grid(network, prediction):
    options = {"prediction_type": prediction, "clip_sample": True}
    want = tiny.run_scheduler(diffusers.DDIMScheduler(**options), network, start(), 10)
    got = tiny.run_scheduler(TruewardAncestralScheduler(eta=0.0, **options), network, start(), 10)
    assert torch.allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm_computes_what_diffusers_does_with_the_same_generator(variance):
    model = tiny.unet(out_channels=2 if variance == "learned_range" else 1)
    table = {"num_train_timesteps": 40, "beta_end": 0.3, "variance_type": variance}
    results = []
    for scheduler in (diffusers.DDPMScheduler(**table), TruewardAncestralScheduler(**table)):
        generator = torch.Generator().manual_seed(3)
        results.append(tiny.run_scheduler(scheduler, lambda x, t: model(x, t).sample, start(), 40, generator=generator))
    assert torch.allclose(*results, atol=1e-4)


def test_schedulers_compute_what_our_samplers_do():
    pipe = tiny.ddpm()
    denoiser = from_pipeline(pipe)
    network = lambda x, t: pipe.unet(x, t).sample  # noqa: E731
    for form, algorithm in (("data", "dpmsolver++"), ("noise", "dpmsolver")):
        scheduler = TruewardDPMSolverScheduler(
            solver_order=3, algorithm_type=algorithm, timestep_spacing="log_snr", final_sigmas_type="sigma_min"
        )
        got = tiny.run_scheduler(scheduler, network, start(), 20)
        want = sampler("dpm-solver++", steps=20, order=3, ms3="consistent", algorithm=form, lower_order_final=False)
        assert torch.allclose(got, want.sample(denoiser, start()).x, atol=2e-4)


# --- convergence on an exact truth ------------------------------------------------------------------------------------------

LAW = GaussianMixture([0.3, 0.7], [[-0.8], [0.5]], [[0.04], [0.09]])


def error(scheduler, steps):
    """Largest distance from the exact probability flow, for a scheduler that ends at the first node, in float64."""
    schedule = DiscreteSchedule.linear(half_log_snr_clip=-20)
    exact = LAW.denoiser(schedule)
    scheduler.set_timesteps(steps)
    first = (float(scheduler.timesteps[0]) + 1) / 1000
    x = torch.linspace(-1.8, 1.8, 9, dtype=torch.float64).view(-1, 1)
    want = LAW.flow(x, schedule, first, schedule.t_min)
    for t in scheduler.timesteps:
        x = scheduler.step(exact(x, (float(t) + 1) / 1000).eps, t, x).prev_sample
    return (x - want).abs().max().item()


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_ddim_converges_on_every_spacing_when_the_steps_do_not_divide_the_table(spacing):
    def make():
        return TruewardAncestralScheduler(eta=0.0, timestep_spacing=spacing, set_alpha_to_one=False, clip_sample=False)

    errors = [error(make(), steps) for steps in (30, 70, 190, 430)]
    assert all(a > 1.5 * b for a, b in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.03


def test_third_order_is_third_order_and_the_reference_is_not():
    slopes = {}
    for third_order in ("consistent", "reference"):
        scheduler = TruewardDPMSolverScheduler(
            solver_order=3, third_order=third_order, timestep_spacing="log_snr", final_sigmas_type="sigma_min"
        )
        errors = [error(scheduler, steps) for steps in (20, 40)]
        slopes[third_order] = np.log2(errors[0] / errors[1])
    assert slopes["consistent"] > 2.7, slopes
    assert slopes["reference"] < 2.6, slopes


# --- life in a pipeline -----------------------------------------------------------------------------------------------------


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("scheduler", BOTH)
def test_a_scheduler_takes_over_any_configuration_and_survives_saving(scheduler, tmp_path):
    pipe = quiet(tiny.ddpm(diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")))
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    want = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="pt").images
    pipe.scheduler.save_pretrained(tmp_path / "alone")
    loaded = scheduler.from_pretrained(tmp_path / "alone").config
    assert all(loaded[k] == v for k, v in pipe.scheduler.config.items() if not k.startswith("_"))
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe"))
    assert type(loaded.scheduler) is scheduler
    got = loaded(generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="pt").images
    assert torch.equal(got, want)
    assert from_pipeline(loaded).schedule == from_pipeline(pipe).schedule
    back = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    assert back.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("scheduler", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stable_diffusion_runs_with_guidance_and_several_images(scheduler, dtype):
    pipe = quiet(tiny.stable_diffusion(dtype=dtype))
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    images = pipe(
        ["a cat", "a dog"], num_images_per_prompt=2, guidance_scale=4.0, num_inference_steps=5, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert images.shape == (4, 4, 8, 8)
    assert images.dtype == dtype
    assert images.isfinite().all()


@pytest.mark.parametrize("scheduler", BOTH)
@pytest.mark.parametrize("strength", [0.3, 0.9])
def test_image_to_image_starts_in_the_middle(scheduler, strength):
    pipe = tiny.stable_diffusion()
    img2img = quiet(diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    img2img.scheduler = scheduler.from_config(pipe.scheduler.config)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = img2img(
        "cat", image=image, strength=strength, num_inference_steps=10, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert img2img.scheduler.begin_index == 10 - int(10 * strength)
    assert latents.isfinite().all()


def test_image_to_image_is_a_run_of_our_sampler_from_the_middle():
    pipe = tiny.ddpm()
    denoiser = from_pipeline(pipe)
    scheduler = TruewardDPMSolverScheduler(lower_order_final=False)
    scheduler.set_timesteps(12)
    scheduler.set_begin_index(5)
    x_0, noise = start(), Noise.rows(1, 3).normal(0, (1, 8, 8))
    x = x_t = scheduler.add_noise(x_0, noise, scheduler.timesteps[5:6])
    t = denoiser.schedule.time_of_node(int(scheduler.timesteps[5]))
    assert torch.allclose(x_t, denoiser.schedule.add_noise(x_0, t, noise), atol=1e-6)
    with torch.no_grad():
        for timestep in scheduler.timesteps[5:]:
            x = scheduler.step(pipe.unet(x, timestep).sample, timestep, x).prev_sample
    grid = Times(times_of_nodes(denoiser.schedule, scheduler.timesteps[5:].numpy()))
    ours = sampler("dpm-solver++", steps=6, grid=grid, lower_order_final=False, denoise_to_zero=True)
    assert torch.allclose(x, ours.sample(denoiser, x_t).x, atol=1e-4)


def test_training_with_add_noise_and_get_velocity_agrees_with_diffusers():
    theirs, x, noise = diffusers.DDPMScheduler(), start(), start().flip(0)
    n = torch.tensor([0, 500, 999])
    for scheduler in (TruewardDPMSolverScheduler(), TruewardAncestralScheduler()):
        assert torch.allclose(scheduler.add_noise(x, noise, n), theirs.add_noise(x, noise, n), atol=1e-5)
        assert torch.allclose(scheduler.get_velocity(x, noise, n), theirs.get_velocity(x, noise, n), atol=1e-5)
        assert len(scheduler) == 1000


def test_a_second_run_does_not_remember_the_first(network):
    scheduler = TruewardDPMSolverScheduler(solver_order=3)
    one = tiny.run_scheduler(scheduler, network, start(), 7)
    assert torch.equal(tiny.run_scheduler(scheduler, network, start(), 7), one)
    assert torch.equal(tiny.run_scheduler(copy.deepcopy(scheduler), network, start(), 7), one)


def test_karras_and_log_snr_timesteps_are_not_rounded(network):
    for options in ({"use_karras_sigmas": True}, {"use_lu_lambdas": True}, {"timestep_spacing": "log_snr"}):
        for final in ("zero", "sigma_min"):
            scheduler = TruewardDPMSolverScheduler(**options, final_sigmas_type=final)
            assert tiny.run_scheduler(scheduler, network, start(), 8).isfinite().all()
            assert scheduler.timesteps.dtype == torch.float32
            level = scheduler.schedule.alpha((scheduler.timesteps.double() + 1) / 1000)
            assert np.allclose(level.numpy(), scheduler.levels.alpha[:8], atol=1e-6)


def test_analytic_variance_is_that_of_our_ancestral_sampler(monkeypatch):
    """The step's deviation is sqrt(lambda^2 + kappa^2 var): checked against the sampler on an exact truth with its variance."""
    schedule = DiscreteSchedule.linear()
    times = schedule.time_of_node(torch.arange(1000))
    variances = [LAW.variance.item() * 0.3] * 1000
    for eta in (0.0, 1.0):
        scheduler = TruewardAncestralScheduler.analytic(diffusers.DDIMScheduler(clip_sample=False), variances, eta=eta)
        nodes = np.array([900, 300, 40])
        scheduler.set_timesteps(timesteps=nodes.tolist())
        exact = LAW.denoiser(schedule)

        class WithVariance(type(exact)):
            def forward(self, x_t, t, **condition):
                return super().forward(x_t, t, **condition).replace(var=variances[0])

        model = WithVariance(LAW, schedule)
        x = x_T = torch.linspace(-1, 1, 5, dtype=torch.float64).view(-1, 1)
        draws = Noise.rows(0, 5)
        for k, n in enumerate(nodes):
            eps = exact(x, times[n].item()).eps
            x = scheduler.step(eps, n, x, variance_noise=draws.normal(k + 1, (1,))).prev_sample
        ours = sampler(
            "ddpm", steps=3, eta=eta, variance="posterior", grid=Times(times_of_nodes(schedule, nodes)), clip=False
        )
        assert torch.allclose(x, ours.sample(model, x_T, seed=0).x, atol=1e-4)


def test_wrong_options_are_explained():
    for options, message in (
        ({"solver_order": 4}, r"solver_order of dpmsolver\+\+ must lie in 1 \.\.\. 3"),
        ({"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}, r"1 \.\.\. 2"),
        ({"algorithm_type": "dpmsolver+"}, r"Did you mean 'dpmsolver"),
        ({"prediction_type": "eps"}, "prediction_type"),
        ({"timestep_spacing": "even"}, "timestep_spacing"),
        ({"algorithm_type": "dpmsolver", "thresholding": True}, "thresholding acts on the predicted data"),
        ({"third_order": "other"}, "third_order"),
    ):
        with pytest.raises(ValueError, match=message):
            TruewardDPMSolverScheduler(**options)
    for options, message in (
        ({"eta": 2.0}, "eta must lie"),
        ({"eta": 0.5, "variance_type": "fixed_large"}, "belongs to eta=1"),
        ({"variance_type": "posterior"}, "belong together"),
        ({"variance_type": "posterior", "posterior_variance": [1.0]}, "1000 finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            TruewardAncestralScheduler(**options)
    scheduler = TruewardDPMSolverScheduler()
    with pytest.raises(ValueError, match="Call set_timesteps"):
        scheduler.step(start(), 10, start())
    with pytest.raises(ValueError, match=r"1 \.\.\. 1000"):
        scheduler.set_timesteps(1001)
    with pytest.raises(ValueError, match="fall strictly"):
        scheduler.set_timesteps(timesteps=[1, 2])
    with pytest.raises(ValueError, match="not both"):
        scheduler.set_timesteps(10, timesteps=[2, 1])


# --- the whole of a text pipeline, ours beside theirs -----------------------------------------------------------------------

PAIRS = {
    "dpm-solver++": (diffusers.DPMSolverMultistepScheduler, TruewardDPMSolverScheduler, {"solver_order": 2}),
    "ddim": (diffusers.DDIMScheduler, TruewardAncestralScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
}


def images_of(pipe, scheduler, dtype, **options):
    pipe.scheduler = scheduler
    return pipe(
        ["a cat", "a dog"], negative_prompt=["fog", "fog"], num_images_per_prompt=2, guidance_scale=3.0,
        num_inference_steps=8, output_type="latent", generator=torch.Generator().manual_seed(0), **options,
    ).images.to(torch.float32)  # fmt: skip


@pytest.mark.parametrize("name", list(PAIRS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strength", [None, 0.4, 1.0])
def test_text_and_image_to_image_pipelines_give_the_images_of_diffusers(name, dtype, strength):
    """Guidance, two images per prompt, bfloat16, and a start in the middle with `set_begin_index`, all at once."""
    theirs, ours, options = PAIRS[name]
    pipe = quiet(tiny.stable_diffusion(dtype=dtype))
    config, inputs = pipe.scheduler.config, {}
    if strength is not None:
        pipe = quiet(diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
        image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        inputs = {"image": image, "strength": strength}
    eta = {} if name == "dpm-solver++" else {"eta": 0.0}
    want = images_of(pipe, theirs.from_config(config, **options), dtype, **inputs)
    got = images_of(pipe, ours.from_config(config, **options, **eta), dtype, **inputs)
    assert got.shape == (4, 4, 8, 8)
    scale = want.abs().max().item()
    if dtype == torch.float32:
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * max(1.0, scale))
    else:  # eight bits of mantissa in the network; ours keeps the state of a step in float32
        assert (got - want).abs().mean() < 0.02 * want.abs().mean()
    again = images_of(pipe, pipe.scheduler, dtype, **inputs)
    assert torch.equal(again, got), "a second run remembers the first"
    assert (got[0] - got[1]).abs().max() > 0.01, "both images of a prompt are the same"


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_noise_of_an_image_to_image_run_comes_from_its_generator(eta):
    pipe = tiny.stable_diffusion()
    pipe = quiet(diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    variances = [0.3] * 1000
    for scheduler in (
        TruewardDPMSolverScheduler.from_config(pipe.scheduler.config, algorithm_type="sde-dpmsolver++"),
        TruewardAncestralScheduler.analytic(pipe.scheduler, variances, eta=eta),
    ):
        pipe.scheduler = scheduler
        drawn = [
            pipe("cat", image=image, strength=0.6, num_inference_steps=8, output_type="latent",
                 generator=torch.Generator().manual_seed(seed)).images
            for seed in (0, 0, 1)
        ]  # fmt: skip
        assert torch.equal(drawn[0], drawn[1])
        assert (drawn[0] - drawn[2]).abs().max() > 0.01
        assert drawn[0].isfinite().all()
