"""Train an unconditional DDPM on MNIST with plain diffusers, so that trueward's commands have a folder they did not make.

    python examples/diffusers_mnist.py mnist.npz runs/ddpm-mnist --minutes 20

`mnist.npz` holds `x_train`, uint8 of shape (60000, 28, 28). No line below uses trueward; the folder that comes out is a
`DDPMPipeline` like any other:

    trueward compare runs/ddpm-mnist --data mnist.npz --samplers ddpm,ddim,dpm-solver++ --steps 10,20
    trueward fit-covariance runs/ddpm-mnist --data mnist.npz
    trueward fit-critic runs/ddpm-mnist --data mnist.npz
    trueward sample runs/ddpm-mnist --refine diffrs -n 64 --out samples.png
    trueward likelihood runs/ddpm-mnist --data mnist.npz
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss
from tqdm.auto import tqdm


def train(data: Path, out: Path, minutes: float, batch_size: int = 64, learning_rate: float = 4e-4) -> None:
    """Minimise the noise-prediction error of Ho, Jain and Abbeel (2020) for so many minutes; write the pipeline."""
    torch.manual_seed(0)
    with np.load(data) as archive:
        images = torch.from_numpy(archive["x_train"])
    network = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    average = EMAModel(network.parameters(), decay=0.999)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    start = time.monotonic()
    with tqdm(total=round(60 * minutes), unit="s") as bar:
        while (seconds := time.monotonic() - start) < 60 * minutes:
            for group in optimizer.param_groups:  # half a cosine, to zero at the end
                group["lr"] = learning_rate * 0.5 * (1 + np.cos(np.pi * seconds / (60 * minutes)))
            chosen = torch.randint(len(images), (batch_size,))
            clean = images[chosen, None].to(device).float() / 127.5 - 1
            noise = torch.randn_like(clean)
            times = torch.randint(1000, (batch_size,), device=device)
            with torch.autocast(device, torch.bfloat16):
                predicted = network(scheduler.add_noise(clean, noise, times), times).sample
            loss = mse_loss(predicted.float(), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.step(network.parameters())
            bar.n = round(seconds)
            bar.set_postfix(updates=average.optimization_step, loss=f"{loss.item():.4f}")
    average.copy_to(network.parameters())
    DDPMPipeline(network.cpu().eval(), scheduler).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    arguments = parser.parse_args()
    train(arguments.data, arguments.out, arguments.minutes)
