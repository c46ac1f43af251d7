"""A small dataset and a small model, enough to train for a moment."""

import os

import pytest
import torch

from trueward.schedules import EDM

os.environ.setdefault("OMP_NUM_THREADS", "1")


class Blobs:
    """Two kinds of 8x8 pictures, in memory; only what the trainer asks of a dataset."""

    def __init__(self, n=256, classes=2):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(n) % classes
        ramp = torch.linspace(-0.5, 0.5, 8)
        picture = torch.stack([ramp.expand(8, 8), ramp.expand(8, 8).T])[self.labels % 2][:, None]
        self.x = (picture + 0.2 * torch.randn(n, 1, 8, 8, generator=generator)).clamp(-1, 1)
        self.shape, self.data_range, self.num_classes = (1, 8, 8), (-1.0, 1.0), classes

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return {"x": self.x[indices], "class_labels": self.labels[indices]}


MODEL = {
    "network": {"network": "UNet", "channels": 1, "size": 8, "width": 8, "multipliers": [1, 2], "blocks": 1,
                "attention": [4], "num_classes": 2, "head_width": 8},
    "denoiser": {"prediction": "edm", "schedule": EDM().to_config(), "shape": [1, 8, 8], "data_range": [-1.0, 1.0],
                 "num_classes": 2, "sigma_data": 0.4},
}  # fmt: skip

FAST = {
    "batch_size": 32,
    "lr": 2e-3,
    "warmup": 5,
    "speed": "plain",
    "held_out": 32,
    "log_every": 1,
    "validate_every": 0,
    "sample_every": 0,
    "checkpoint_every": 0,
    "progress": False,
}


@pytest.fixture
def blobs():
    return Blobs()
