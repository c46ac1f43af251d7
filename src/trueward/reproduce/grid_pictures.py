"""The pictures of :mod:`trueward.reproduce.grid`: samples before and after, and what every way of sampling measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trueward import records
from trueward.reproduce.grid_claims import MEASURES, Cells, interval, values

SHOWN = ("data", "base", "dg (2,0)", "dg (-2,0)", "diffrs 0.9", "dg (2,0) + diffrs 0.9")


def plot_samples(samples: Mapping[str, Tensor], path: Path) -> None:
    """Scatter plots of points of the plane side by side; those far from every mode are marked."""
    plt = _pyplot()
    figure, axes = plt.subplots(2, -(-len(samples) // 2), figsize=(10, 6.8), constrained_layout=True, squeeze=False)
    for axis, (name, x) in zip(axes.flat, samples.items()):
        points = x.double().numpy()
        nearest = np.clip(np.round(points), -2, 2)
        off = np.linalg.norm(points - nearest, axis=1) > 0.32
        axis.scatter(*points[~off].T, s=1.5, color="#3b6ea5", linewidths=0)
        axis.scatter(*points[off].T, s=3, color="#c2452d", linewidths=0)
        axis.set(title=f"{name}: {100 * off.mean():.1f} % off the modes", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
        axis.set_aspect("equal")
        axis.tick_params(labelsize=7)
        axis.title.set_fontsize(9)
    _save(figure, path)


def plot_bars(cells: Cells, path: Path) -> None:
    """One panel for each measure, one bar for each cell, with the 95 % interval over the seeds."""
    plt = _pyplot()
    names = list(cells)
    figure, axes = plt.subplots(1, len(MEASURES) + 1, figsize=(12, 5), constrained_layout=True, sharey=True)
    for axis, measure in zip(axes, (*MEASURES, "nfe")):
        for row, name in enumerate(names):
            if measure not in next(iter(cells[name].values())):
                continue
            mean, low, high = interval(values(cells, name, measure))
            colour = {"base": "#888888", "dg": "#3b6ea5", "di": "#2f8f5b", "sh": "#d3b04a", "da": "#444444"}
            shade = colour["base"] if name.startswith("base") else colour[name[:2]]
            axis.barh(row, mean, xerr=[[mean - max(low, 0.0)], [high - mean]], color=shade, ecolor="black", height=0.7)
        axis.set_title({"nfe": "network evaluations per sample"}.get(measure, measure), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    with records.atomic(path) as part:
        figure.savefig(part, dpi=110, format="png")
    _pyplot().close(figure)
