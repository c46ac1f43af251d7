"""Discriminator Guidance and rejection around pipelines: what our denoisers and samplers do, seen from diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from torch import Tensor

import trueward
from trueward.critics.critic import Critic
from trueward.integrations import from_pipeline, times_of_nodes, visited_nodes
from trueward.noise import Noise
from trueward.refinement import DiscriminatorGuidance
from trueward.samplers import sampler
from trueward.schedules import VPLinear
from trueward.times import Times

diffusers = pytest.importorskip("diffusers", reason=tiny.SKIP_DIFFUSERS)
from trueward.integrations import DiffRSPipeline, GuidedNetwork, guide  # noqa: E402


class Brightness(Critic):
    """Real images are brighter: log ratio = strength alpha^2 mean(x), and of class c by c times that."""

    def __init__(self, shape=(1, 8, 8), num_classes=None, strength=60.0):
        super().__init__(VPLinear(t_min=1e-5), shape=shape, num_classes=num_classes)
        self.strength = torch.nn.Parameter(torch.tensor(strength), requires_grad=False)

    def logit(self, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None, **condition) -> Tensor:
        alpha2 = self.schedule.alpha(t).to(x_t) ** 2
        factor = 1.0 if class_labels is None else class_labels.to(x_t)
        return self.strength * alpha2 * factor * x_t.flatten(1).mean(1)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start(denoiser, n=2):
    return Noise.rows(0, n).normal(0, denoiser.shape)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_guided_network_answers_what_the_guided_denoiser_does(prediction):
    pipe = tiny.ddpm(diffusers.DDPMScheduler(prediction_type=prediction))
    plain, critic = from_pipeline(pipe), Brightness()
    ours = DiscriminatorGuidance(plain, critic, weight=1.5)
    guide(pipe, critic, weight=1.5)
    x, nodes = start(plain, 3), torch.tensor([10, 400, 990])
    posterior = ours(x, plain.schedule.time_of_node(nodes))
    want = {"epsilon": posterior.eps, "sample": posterior.mean, "v_prediction": posterior.v}[prediction]
    got = pipe.unet(x, nodes).sample
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (got - pipe.unet.network(x, nodes).sample).abs().max() > 1e-3
    torch.testing.assert_close(pipe.unet(x, 400, return_dict=False)[0][1], got[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "scheduler", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_every_scheduler_sees_a_better_network(scheduler):
    critic, x_T = Brightness(strength=1000.0), Noise.rows(0, 4).normal(0, (1, 8, 8))

    def draw(weight):
        pipe = tiny.ddpm(getattr(diffusers, scheduler)())
        if weight is not None:
            guide(pipe, critic, weight=weight)
        pipe.scheduler.set_timesteps(8)
        x = x_T * pipe.scheduler.init_noise_sigma
        options = {"generator": torch.Generator().manual_seed(0)} if scheduler == "DDPMScheduler" else {}
        x = tiny.run_scheduler(pipe.scheduler, lambda x, t: pipe.unet(x, t).sample, x, 8, **options)
        return (x / 2 + 0.5).clamp(0, 1)

    plain = draw(None)
    assert torch.equal(draw(0.0), plain)
    assert draw(1.0).mean() > plain.mean() + 0.02
    assert draw(-1.0).mean() < plain.mean() - 0.02


def test_ddim_with_guidance_in_the_pipeline_is_our_ddim_of_the_guided_denoiser():
    pipe = tiny.ddpm(diffusers.DDIMScheduler())
    plain, critic = from_pipeline(pipe), Brightness()
    x_T = start(plain)
    grid = Times(times_of_nodes(plain.schedule, visited_nodes(pipe.scheduler.config, 10)))
    ours = sampler("ddim", steps=10, grid=grid)
    guide(pipe, critic, weight=0.7)
    want = tiny.run_scheduler(pipe.scheduler, lambda x, t: pipe.unet(x, t).sample, x_T, 10)
    for guided in (DiscriminatorGuidance(plain, critic, weight=0.7), from_pipeline(pipe)):
        torch.testing.assert_close(ours.sample(guided, x_T).x, want, rtol=0, atol=1e-4)
    assert (ours.sample(plain, x_T).x - want).abs().max() > 1e-2


def test_a_conditional_critic_judges_every_image_by_its_label():
    pipe = tiny.ddpm(num_class_embeds=4)
    guide(pipe, Brightness(num_classes=4))
    x, labels = start(from_pipeline(pipe), 3), torch.tensor([0, 1, 3])
    moved = pipe.unet(x, 300, class_labels=labels).sample - pipe.unet.network(x, 300, class_labels=labels).sample
    size = moved.abs().flatten(1).mean(1)
    assert size[0] == 0
    assert (size[2] / size[1]).item() == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_pipeline_is_guided_by_a_critic_of_latents_and_by_its_prompt(dtype):
    """The correction does not depend on the scale of classifier-free guidance: both halves carry the same one."""
    pipe = quiet(tiny.stable_diffusion(dtype=dtype))
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    critic = Brightness((4, 8, 8), strength=300.0)

    def draw(scale):
        return pipe(
            "a cat", num_images_per_prompt=2, guidance_scale=scale, num_inference_steps=1, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    plain = [draw(scale) for scale in (1.0, 3.0)]
    guide(pipe, critic)
    moved = [draw(scale) - before for scale, before in zip((1.0, 3.0), plain, strict=True)]
    assert moved[0].dtype == dtype
    assert moved[0].abs().mean() > 0
    spread = 1e-4 if dtype == torch.float32 else 0.05 * plain[0].abs().max().item()
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=spread)


def test_guidance_is_taken_away_again():
    pipe = quiet(tiny.ddpm())
    network = pipe.unet
    guide(pipe, Brightness())
    assert isinstance(pipe.unet, GuidedNetwork)
    assert pipe.unet.config.in_channels == 1
    assert pipe.unet.dtype == torch.float32
    with pytest.raises(ValueError, match="guided already"):
        guide(pipe, Brightness())
    pipe.unet = pipe.unet.network
    assert pipe.unet is network
    with pytest.raises(ValueError, match="critic takes samples of shape"):
        guide(pipe, Brightness((1, 4, 4)))
    with pytest.raises(ValueError, match="has no table of betas"):
        guide(tiny.ddpm(diffusers.FlowMatchEulerDiscreteScheduler()), Brightness())


# --- rejection --------------------------------------------------------------------------------------------------------------


def test_rejection_returns_what_the_pipeline_returns_and_prefers_what_the_critic_does():
    pipe = quiet(tiny.ddpm())
    plain = sampler("ddpm", steps=8).sample(from_pipeline(pipe), n=64, seed=1).x
    refined = DiffRSPipeline(pipe, Brightness(strength=20.0), "ddpm", warm_up=100, percentile=0.9)
    answer = refined(64, torch.Generator().manual_seed(0), num_inference_steps=8, output_type="pt")
    assert isinstance(answer, diffusers.ImagePipelineOutput)
    assert answer.images.shape == (64, 1, 8, 8)
    assert 0 <= answer.images.min() <= answer.images.max() <= 1
    # brighter by more than five standard errors: a false alarm has probability below 1e-6
    means = [x.flatten(1).mean(1) for x in (answer.images, plain / 2 + 0.5)]
    assert means[0].mean() - means[1].mean() > 5 * (means[0].var() / 64 + means[1].var() / 64) ** 0.5
    assert refined.refined_.nfe_per_sample > 8
    assert (refined.refined_.tested[0].sum() > refined.refined_.accepted[0].sum()).item()


def test_rejection_is_the_one_of_our_samplers():
    pipe, critic = tiny.ddpm(), Brightness(strength=5.0)
    refined = DiffRSPipeline(pipe, critic, "ddim", warm_up=20)
    images = refined(3, torch.Generator().manual_seed(0), num_inference_steps=5, output_type="pt").images
    seed = int(torch.randint(2**63 - 1, (), generator=torch.Generator().manual_seed(0)))
    ours = trueward.refinement.refined_sampler.RefinedSampler(
        sampler("ddim", steps=5), critic, rejection={"warm_up": 20}
    )
    want = ours.sample(from_pipeline(pipe), n=3, seed=seed).x
    torch.testing.assert_close(images, (want / 2 + 0.5).clamp(0, 1))


def test_images_come_in_the_form_that_was_asked_for():
    refined = DiffRSPipeline(tiny.ddpm(), Brightness(strength=1.0), warm_up=10)

    def draw(**options):
        return refined(2, torch.Generator().manual_seed(0), num_inference_steps=3, slots=2, **options)

    pictures, arrays, tensors = (draw(output_type=kind).images for kind in ("pil", "np", "pt"))
    assert [picture.size for picture in pictures] == [(8, 8)] * 2
    assert arrays.shape == (2, 8, 8, 1)
    assert np.array_equal(np.moveaxis(arrays, 3, 1), tensors.numpy())
    assert np.array_equal(draw(output_type="np", return_dict=False)[0], arrays)
    assert abs(np.asarray(pictures[0]).squeeze() / 255 - arrays[0, ..., 0]).max() < 0.003


def test_labels_follow_their_images_and_constants_are_kept_in_a_folder(tmp_path):
    pipe = tiny.ddpm(num_class_embeds=4)
    refined = DiffRSPipeline(pipe, Brightness(num_classes=4, strength=5.0), warm_up=20, folder=tmp_path)
    labels = [3, 0, 1]
    draw = {"class_labels": labels, "num_inference_steps": 4, "output_type": "pt"}
    images = refined(generator=torch.Generator().manual_seed(0), **draw).images
    assert refined.refined_.condition["class_labels"].tolist() == labels
    (stored,) = tmp_path.glob("rejection-*.safetensors")
    written = stored.stat().st_mtime_ns
    again = DiffRSPipeline(pipe, Brightness(num_classes=4, strength=5.0), warm_up=20, folder=tmp_path)
    assert torch.equal(again(generator=torch.Generator().manual_seed(0), **draw).images, images)
    assert stored.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="give class_labels"):
        refined(2)


def test_latent_images_are_decoded():
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=8, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        patch_size=2, num_embeds_ada_norm=5, norm_num_groups=4,
    ).eval()  # fmt: skip
    pipe = diffusers.DiTPipeline(
        transformer=transformer, vae=tiny.autoencoder().eval(), scheduler=diffusers.DDIMScheduler(clip_sample=False)
    )
    critic = Brightness((4, 8, 8), strength=5.0)
    guide(pipe, critic)  # both corrections at once
    refined = DiffRSPipeline(pipe, critic, warm_up=10)
    images = refined(class_labels=[1, 4], num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 16, 16, 3)


def test_what_cannot_be_rejected_is_explained():
    with pytest.raises(ValueError, match="cannot be stepped row by row"):
        DiffRSPipeline(tiny.ddpm(), Brightness(), "dpm-solver++")
    with pytest.raises(ValueError, match="takes prompts"):
        DiffRSPipeline(tiny.stable_diffusion(), Brightness((4, 8, 8)))
    with pytest.raises(ValueError, match="option of diffrs"):
        DiffRSPipeline(tiny.ddpm(), Brightness(), percentil=0.5)
    refined = DiffRSPipeline(tiny.ddpm(), Brightness())
    with pytest.raises(ValueError, match="output_type must be pil, np or pt"):
        refined(output_type="jpg")
    with pytest.raises(ValueError, match="Give one generator"):
        refined(2, [torch.Generator(), torch.Generator()])
