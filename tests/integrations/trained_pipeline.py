"""A `DDPMPipeline` trained on real MNIST by plain diffusers code: no line here uses trueward's models or samplers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipelines import SKIP_DIFFUSERS

from trueward.data.builtin import mnist_places


def mnist_file() -> Path:
    """``mnist.npz``, or a loud skip."""
    found = next((place for place in mnist_places() if place.is_file()), None)
    if found is None:
        pytest.skip(f"mnist.npz is in none of {', '.join(map(str, mnist_places()))}: set TRUEWARD_DATA to its folder")
    return found


def train(folder: Path, updates: int = 200, batch_size: int = 16) -> Path:
    """Noise prediction as in the tutorials (Ho et al. 2020) on a linear table of 1000 nodes; saves the pipeline."""
    diffusers = pytest.importorskip("diffusers", reason=SKIP_DIFFUSERS)
    with np.load(mnist_file()) as archive:
        images = torch.from_numpy(archive["x_train"][:20_000])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
        optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
        for _ in range(updates):
            clean = images[torch.randint(len(images), (batch_size,)), None].float() / 127.5 - 1.0
            noise, times = torch.randn_like(clean), torch.randint(1000, (batch_size,))
            loss = torch.nn.functional.mse_loss(network(scheduler.add_noise(clean, noise, times), times).sample, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    diffusers.DDPMPipeline(network.eval(), scheduler).save_pretrained(folder)
    return folder
