"""A look at a model while it trains: always the same noise, so that one sees it learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trueward import records
from trueward.denoisers import Denoiser


@torch.no_grad()
def draw_samples(denoiser: Denoiser, path: Path, n: int = 64, steps: int = 20) -> None:
    """Draws `n` samples with DDIM from seed 0, classes in turn, and writes a PNG: a grid of images, or a scatter of vectors.

    Other shapes are passed over.
    """
    from trueward.samplers import DDIM

    shape = denoiser.shape
    image = shape is not None and len(shape) == 3 and shape[0] in (1, 3)
    vector = shape is not None and len(shape) == 1 and shape[0] >= 2
    if not (image or vector):
        return
    labels: dict[str, Any] = (
        {} if denoiser.num_classes is None else {"class_labels": torch.arange(n) % denoiser.num_classes}
    )
    x = DDIM(steps=steps, grid="karras").sample(denoiser, n=n, seed=0, **labels).x.float().cpu()
    if image:
        from trueward.data import save_grid

        save_grid(x, path, data_range=denoiser.data_range or (-1.0, 1.0))
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x[:, 0], x[:, 1], s=6)
    axes.set_aspect("equal", "datalim")
    with records.atomic(path) as part:
        figure.savefig(part, format="png", dpi=100)
