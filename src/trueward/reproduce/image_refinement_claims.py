"""What Discriminator Guidance and DiffRS claim of image models, whether measurements bear it out, and the picture.

Both lower the Frechet distance of the base sampler; DiffRS raises the quality of single samples (precision, or the share that
a classifier takes for the class asked for). All methods start from the same noise, so gains are differences seed by seed; one counts
if it is larger than two standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueward import records

METHODS = ("DG", "DiffRS", "DG + DiffRS")
Summary = dict[str, dict[str, dict[str, float]]]
Base = tuple[str, int]


def summary(cells: dict[str, Any], bases: Sequence[Base], seeds: int) -> Summary:
    """Of every sampler and metric: mean over the seeds, its standard error and 95 % interval (Student's t), and the same of the gain."""
    found: Summary = {}
    for spec, steps in bases:
        for method in ("base", *METHODS):
            keys = [f"{spec} {steps} {method} seed {seed}" for seed in range(seeds)]
            known = [cells[key] for key in keys if key in cells]
            if not known:
                continue
            base = [cells[f"{spec} {steps} base seed {seed}"] for seed in range(seeds) if keys[seed] in cells]
            found[f"{spec} {steps} {method}"] = {
                metric: {
                    **_mean([cell[metric] for cell in known]),
                    **{
                        f"gain_{name}": value
                        for name, value in _mean([b[metric] - cell[metric] for b, cell in zip(base, known)]).items()
                        if method != "base"
                    },
                }
                for metric in known[0]
            }
    return found


def _mean(values: Sequence[float]) -> dict[str, float]:
    """Mean, its standard error and 95 % interval."""
    mean, n = float(np.mean(values)), len(values)
    error = float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    half = error * _student(n - 1) if n > 1 else math.nan
    return {"value": mean, "error": error, "low": mean - half, "high": mean + half}


def _student(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def claims(found: Summary, bases: Sequence[Base]) -> dict[str, bool]:
    """Which claims hold, by their names."""
    held: dict[str, bool] = {}
    for spec, steps in bases:
        for method in METHODS:
            own = found.get(f"{spec} {steps} {method}")
            if own is None:
                continue
            where = f"{method}: {spec}, {steps} steps:"
            held[f"{where} lower Frechet distance"] = _gain(own, "frechet") > 0
            if method == "DiffRS":
                better = [_gain(own, metric) < 0 for metric in ("precision", "accuracy") if metric in own]
                held[f"{where} better single samples"] = any(better)
    return held


def _gain(own: dict[str, dict[str, float]], metric: str) -> float:
    """What the metric fell by against the base sampler where that is beyond two standard errors, else 0."""
    gain, error = own[metric]["gain_value"], own[metric]["gain_error"]
    return gain if abs(gain) > 2.0 * error else 0.0


def verdict(held: dict[str, bool]) -> str:
    """In words."""
    if not held or not any(held.values()):
        return "not reproduced"
    return "reproduced" if all(held.values()) else "partly reproduced"


def plot(found: Summary, bases: Sequence[Base], held_out: dict[str, float], path: Path) -> None:
    """Quality against the network evaluations spent; one colour per correction, one line per base sampler."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {"frechet": "Frechet distance", "precision": "precision", "recall": "recall", "accuracy": "class accuracy"}
    shown = {metric: label for metric, label in shown.items() if any(metric in cell for cell in found.values())}
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3.6), constrained_layout=True, squeeze=False)
    names = list(dict.fromkeys(spec for spec, _ in bases))
    for axis, (metric, label) in zip(axes[0], shown.items()):
        for method, colour in zip(("base", *METHODS), ("0.35", "C0", "C1", "C2")):
            for spec, line, marker in zip(names, ("-", "--", ":"), "os^"):
                points = [found.get(f"{spec} {steps} {method}") for other, steps in bases if other == spec]
                known = [point for point in points if point is not None]
                if known:
                    x = [point["nfe"]["value"] for point in known]
                    y = [point[metric]["value"] for point in known]
                    error = [point[metric]["error"] for point in known]
                    axis.errorbar(
                        x,
                        y,
                        error,
                        color=colour,
                        linestyle=line,
                        marker=marker,
                        markersize=4,
                        label=f"{method}, {spec}",
                    )
        if metric in held_out:
            axis.axhline(held_out[metric], color="0.7", linewidth=1, label="held-out data")
        axis.set(
            xlabel="network evaluations per sample", title=label, yscale="log" if metric == "frechet" else "linear"
        )
    axes[0][0].legend(fontsize=6.5)
    with records.atomic(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)
