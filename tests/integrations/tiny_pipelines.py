"""Tiny pipelines with random weights, built by plain diffusers code."""

from __future__ import annotations

import pytest
import torch

SKIP_DIFFUSERS = "diffusers is not installed: pip install trueward[diffusers]"
SKIP_TRANSFORMERS = "transformers is not installed: pip install transformers"


def unet(seed=0, channels=1, size=8, out_channels=None, **options):
    diffusers = pytest.importorskip("diffusers", reason=SKIP_DIFFUSERS)
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=out_channels or channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        **options,
    ).eval()


def ddpm(scheduler=None, **options):
    diffusers = pytest.importorskip("diffusers", reason=SKIP_DIFFUSERS)
    return diffusers.DDPMPipeline(unet(**options), scheduler or diffusers.DDPMScheduler())


def tokenizer():
    transformers = pytest.importorskip("transformers", reason=SKIP_TRANSFORMERS)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    return transformers.CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=16)


def stable_diffusion(prediction_type="epsilon", dtype=torch.float32, scheduler=None, **scheduler_options):
    """A Stable Diffusion pipeline with 8x8 latents of 16x16 images and a text encoder of two layers."""
    diffusers = pytest.importorskip("diffusers", reason=SKIP_DIFFUSERS)
    transformers = pytest.importorskip("transformers", reason=SKIP_TRANSFORMERS)
    torch.manual_seed(0)
    network = conditional_unet()
    vae = autoencoder()
    words = tokenizer()
    text = transformers.CLIPTextModel(text_config())
    for module in (network, vae, text):
        module.to(dtype).eval()
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=network,
        scheduler=scheduler or latent_scheduler(prediction_type=prediction_type, **scheduler_options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl():
    """The same with a second text encoder and the sizes as a further condition."""
    diffusers = pytest.importorskip("diffusers", reason=SKIP_DIFFUSERS)
    transformers = pytest.importorskip("transformers", reason=SKIP_TRANSFORMERS)
    torch.manual_seed(0)
    sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + 16}
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder().eval(),
        text_encoder=transformers.CLIPTextModel(text_config()).eval(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(text_config()).eval(),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=conditional_unet(cross_attention_dim=32, addition_embed_type="text_time", **sizes).eval(),
        scheduler=latent_scheduler(),
        add_watermarker=False,
    )


def latent_scheduler(**options):
    diffusers = pytest.importorskip("diffusers", reason=SKIP_DIFFUSERS)
    table = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    return diffusers.DDIMScheduler(**{**table, "set_alpha_to_one": False, "steps_offset": 1, **options})


def text_config():
    transformers = pytest.importorskip("transformers", reason=SKIP_TRANSFORMERS)
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def autoencoder():
    diffusers = pytest.importorskip("diffusers", reason=SKIP_DIFFUSERS)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def conditional_unet(cross_attention_dim=16, **options):
    diffusers = pytest.importorskip("diffusers", reason=SKIP_DIFFUSERS)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=cross_attention_dim,
        **options,
    )


def run_scheduler(scheduler, network, x, steps, draws=None, dtype=torch.float32, **step_options):
    """What plain diffusers code does: the loop over the timesteps, with the noise of `draws` where the scheduler asks for it."""
    scheduler.set_timesteps(steps)
    x = x.to(dtype)
    with torch.no_grad():
        for t in scheduler.timesteps:
            answer = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(answer, t, x, **step_options).prev_sample
    return x
