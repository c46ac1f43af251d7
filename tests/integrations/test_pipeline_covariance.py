"""Fitted covariances inside diffusers' pipelines: the steps are those of our ancestral sampler."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch

import trueward
from trueward.covariance import GammaTable, NPRCovariance, SNCovariance, save_head, save_table, with_covariance
from trueward.integrations import from_pipeline, times_of_nodes, visited_nodes
from trueward.integrations.visited_levels import whole_schedule
from trueward.noise import Noise
from trueward.samplers import sampler
from trueward.times import Times

diffusers = pytest.importorskip("diffusers", reason=tiny.SKIP_DIFFUSERS)
from trueward.integrations import HeadedNetwork, TruewardAncestralScheduler, use_covariance  # noqa: E402

HEADS = {"sn": SNCovariance, "npr": NPRCovariance}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fitted(denoiser, kind, mode="simple", scale=0.3):
    """A head with random weights, so that its answer depends on everything it reads."""
    covariance = HEADS[kind](denoiser, mode=mode)
    torch.manual_seed(1)
    for parameter in covariance.head.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    torch.nn.init.constant_(covariance.head.out.bias, 3.0)  # variances that are mostly positive
    return covariance.eval()


def drawn_by_pipeline(pipe, x_T, steps, noise):
    """The pipeline's loop with the draws that our sampler makes."""
    scheduler, x = pipe.scheduler, x_T
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            draw = noise.normal(k + 1, x.shape[1:])
            x = scheduler.step(pipe.unet(x, t).sample, t, x, variance_noise=draw).prev_sample
    return x


@pytest.mark.parametrize("kind", ["sn", "npr"])
@pytest.mark.parametrize("mode", ["simple", "complex"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_learned_variance_gives_the_samples_of_our_ancestral_sampler(kind, mode, eta, tmp_path):
    pipe = tiny.ddpm(diffusers.DDPMScheduler(prediction_type="v_prediction" if mode == "simple" else "epsilon"))
    denoiser = from_pipeline(pipe)
    covariance = fitted(denoiser, kind, mode)
    save_head(covariance, tmp_path)
    noise, steps = Noise.rows(3, 2), 6
    x_T = noise.normal(0, (1, 8, 8))
    grid = Times(times_of_nodes(denoiser.schedule, visited_nodes(pipe.scheduler.config, steps)))
    want = sampler("ddpm", steps=steps, grid=grid, eta=eta, variance=kind).sample(covariance, x_T, seed=3).x
    blind = sampler("ddpm", steps=steps, grid=grid, eta=eta).sample(denoiser, x_T, seed=3).x
    use_covariance(pipe, kind, tmp_path, eta=eta)
    torch.testing.assert_close(drawn_by_pipeline(pipe, x_T, steps, noise), want, rtol=0, atol=1e-4)
    assert (want - blind).abs().mean() > 1e-3, "the head does not matter here"


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["analytic", "analytic-residual"])
def test_a_measured_variance_gives_the_samples_of_our_ancestral_sampler(kind, eta, tmp_path):
    pipe = tiny.ddpm(diffusers.DDPMScheduler(num_train_timesteps=100, beta_end=0.2))
    denoiser = from_pipeline(pipe)
    nodes = denoiser.schedule.nodes
    times = denoiser.schedule.time_of_node(torch.arange(nodes)).numpy()
    gamma = np.linspace(0.2, 0.9, nodes)
    errors = (np.full(nodes, 0.01), np.full(nodes, 0.02), np.full(nodes, 64.0))
    save_table(GammaTable(denoiser.schedule, times, gamma, 1.1 - gamma, *errors), tmp_path, denoiser)
    noise, steps = Noise.rows(3, 2), 10
    x_T = noise.normal(0, (1, 8, 8))
    grid = Times(times_of_nodes(denoiser.schedule, visited_nodes(pipe.scheduler.config, steps)))
    ours = sampler("ddpm", steps=steps, grid=grid, eta=eta, variance=kind, clip_pixel=2.0)
    want = ours.sample(with_covariance(denoiser, kind, tmp_path), x_T, seed=3).x
    use_covariance(pipe, kind, tmp_path, eta=eta, clip_sigma_pixels=2.0)
    torch.testing.assert_close(drawn_by_pipeline(pipe, x_T, steps, noise), want, rtol=0, atol=1e-4)


def test_a_pair_and_doubled_channels_are_the_same_answer():
    x, eps, h = (torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(s)) for s in range(3))
    results = []
    for answer in ((eps, h), torch.cat([eps, h], 1)):
        scheduler = TruewardAncestralScheduler(variance_type="npr")
        scheduler.set_timesteps(10)
        results.append(scheduler.step(answer, 900, x, generator=torch.Generator().manual_seed(0)).prev_sample)
    assert torch.equal(*results)


def test_a_pipeline_with_a_head_is_saved_opened_and_read(tmp_path):
    quiet(tiny.ddpm()).save_pretrained(tmp_path / "plain")
    pipe = quiet(diffusers.DDPMPipeline.from_pretrained(tmp_path / "plain"))
    denoiser = trueward.load(tmp_path / "plain")
    covariance = fitted(denoiser, "npr")
    save_head(covariance, tmp_path / "plain")
    use_covariance(pipe, "npr")  # found beside the folder it came from
    want = pipe(2, torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
    pipe.save_pretrained(tmp_path / "headed")
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "headed"))
    assert isinstance(loaded.unet, HeadedNetwork)
    assert isinstance(loaded.scheduler, TruewardAncestralScheduler)
    got = loaded(2, torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
    assert np.array_equal(got, want)
    back = trueward.load(tmp_path / "headed")
    assert back.covariance_kind == "npr"
    x = Noise.rows(0, 2).normal(0, (1, 8, 8))
    assert torch.allclose(back(x, 0.5).var, covariance(x, 0.5).var)
    assert torch.allclose(back(x, 0.5).mean, denoiser(x, 0.5).mean)


def test_the_network_is_shared_and_answers_as_before(tmp_path):
    pipe = tiny.ddpm(num_class_embeds=3)
    network, denoiser = pipe.unet, from_pipeline(pipe, null_class=True)
    headed = HeadedNetwork.of(network, fitted(denoiser, "sn"), list(whole_schedule(pipe.scheduler.config).betas))
    assert headed.network is network
    assert headed.config.num_class_embeds == 3
    x, labels = Noise.rows(0, 2).normal(0, (1, 8, 8)), torch.tensor([0, 2])
    plain = network(x, 77, class_labels=labels).sample
    both = headed(x, 77, class_labels=labels).sample
    assert both.shape == (2, 2, 8, 8)
    assert torch.equal(both[:, :1], plain)
    assert torch.equal(headed(x, torch.tensor([77, 77]), class_labels=labels, return_dict=False)[0], both)
    assert sum(p.numel() for p in headed.parameters()) == sum(
        p.numel() for m in (network, headed.head) for p in m.parameters()
    )


def test_a_text_pipeline_runs_with_a_head_and_guidance(tmp_path):
    pipe = quiet(tiny.stable_diffusion())
    inner = from_pipeline(pipe).inner
    # the prompt is part of the condition, so the head's probe cannot ask the network by itself
    head = trueward.covariance.CovarianceHead(8, 4)
    covariance = NPRCovariance(inner, head)
    torch.nn.init.normal_(head.out.weight, std=0.3)
    save_head(covariance, tmp_path)
    use_covariance(pipe, "npr", tmp_path, eta=0.0)
    assert pipe.scheduler.config.clip_sample is False
    draw = [
        pipe("a cat", num_images_per_prompt=2, num_inference_steps=4, guidance_scale=3.0, output_type="latent",
             generator=torch.Generator().manual_seed(seed)).images
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert draw[0].shape == (2, 4, 8, 8)
    assert draw[0].isfinite().all()
    assert torch.equal(draw[0], draw[1])
    assert not torch.allclose(draw[0], draw[2])


def test_what_does_not_fit_is_refused(tmp_path):
    pipe = tiny.ddpm()
    denoiser = from_pipeline(pipe)
    with pytest.raises(ValueError, match="Unknown covariance 'npr-full'"):
        use_covariance(pipe, "npr-full", tmp_path)
    with pytest.raises(ValueError, match="is missing; fit it with `trueward fit-covariance`"):
        use_covariance(pipe, "npr", tmp_path)
    save_head(fitted(denoiser, "npr"), tmp_path)
    with pytest.raises(ValueError, match="fitted on another model"):
        use_covariance(tiny.ddpm(seed=5), "npr", tmp_path)
    ranges = diffusers.DDPMScheduler(variance_type="learned_range")
    with pytest.raises(ValueError, match="a head of kind 'npr' cannot be put beside it"):
        TruewardAncestralScheduler.learned(ranges, "npr")
    doubled = tiny.ddpm(ranges, channels=1, out_channels=2)
    save_head(fitted(from_pipeline(doubled), "npr"), tmp_path / "doubled")
    with pytest.raises(ValueError, match="predicts variances of its own"):
        use_covariance(doubled, "npr", tmp_path / "doubled")
    assert not isinstance(doubled.unet, HeadedNetwork)
    use_covariance(pipe, "npr", tmp_path)
    with pytest.raises(ValueError, match="holds a HeadedNetwork already"):
        use_covariance(pipe, "npr", tmp_path)
    x = torch.zeros(2, 1, 8, 8)

    def step(answer, **options):
        scheduler = TruewardAncestralScheduler(**options)
        scheduler.set_timesteps(10)
        scheduler.step(answer, 900, x)

    with pytest.raises(ValueError, match=r"A pair \(prediction, h\) belongs to variance_type='sn' or 'npr'"):
        step((x, x), variance_type="learned_range")
    with pytest.raises(ValueError, match="needs a network that answers a pair"):
        step(x, variance_type="sn")
    with pytest.raises(ValueError, match="h has shape"):
        step((x, x[:, :, :4]), variance_type="sn")
    with pytest.raises(ValueError, match="h is NaN or infinite at timestep 900"):
        step((x, x * float("nan")), variance_type="sn")
    with pytest.raises(ValueError, match="clip_sigma_pixels must be a positive number"):
        TruewardAncestralScheduler(clip_sigma_pixels=0.0)
