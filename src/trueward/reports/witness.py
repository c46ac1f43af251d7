"""The first samples of a drawing with rejection, drawn once more under observation: what was judged, and how."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.drawing import Drawing
from trueward.refinement import Refined, Tested
from trueward.samplers.run import check_condition

SHOWN_LEVELS, SHOWN = 4, 16


@dataclass
class Witness:
    """What was seen.

    Attributes:
        x, plain: (n, *shape), the samples with rejection and without it, of the same indices.
        labels: (n,) or None.
        shown: levels that have something to show, from noise to data.
        seen: for (level, passed): posterior means (k, *shape) and how many there were in all.
    """

    x: Tensor
    plain: Tensor
    labels: Tensor | None
    shown: list[int]
    seen: dict[tuple[int, bool], tuple[Tensor, int]] = field(default_factory=dict)


def watch(drawing: Drawing, n: int, batch_size: int) -> Witness:
    """Draws the samples 0 ... n-1 again, with and without rejection."""
    sampler = drawing.refined
    model, indices = drawing.model, torch.arange(n)
    labels = drawing.labels_of(indices)
    condition: dict[str, Any] = {} if labels is None else {"class_labels": labels}
    states: dict[tuple[int, bool], list[tuple[float, Tensor, int]]] = defaultdict(list)
    counts: dict[tuple[int, bool], int] = defaultdict(int)

    def observe(tested: Tested) -> None:
        if not tested.transition:
            return
        for level in tested.level.unique().tolist():
            for passed in (False, True):
                rows = ((tested.level == level) & (tested.passed == passed)).nonzero()[:, 0]
                counts[level, passed] += len(rows)
                kept = states[level, passed]
                for row in rows.tolist():
                    # of the accepted the first ones (a random choice), of the rejected the least real
                    kept.append((tested.log_ratio[row].item(), tested.x[row].cpu(), int(tested.indices[row])))
                if not passed:
                    kept.sort(key=lambda entry: entry[0])
                del kept[SHOWN:]

    refined = sampler.sample(
        model, indices=indices, seed=drawing.seed, batch_size=batch_size, observe=observe, **condition
    )
    assert isinstance(refined, Refined)
    guided = sampler.model(model)
    parts = []
    for rows in indices.split(batch_size):
        own: dict[str, Any] = {} if labels is None else {"class_labels": labels[rows]}
        parts.append(sampler.inner.sample(guided, indices=rows, seed=drawing.seed, **own).x)
    rejected = sorted(
        (level for level, passed in counts if not passed and counts[level, False]), key=lambda k: -counts[k, False]
    )
    shown = sorted(rejected[:SHOWN_LEVELS])
    witness = Witness(refined.x.cpu(), torch.cat(parts).cpu(), labels, shown)
    chain = sampler.chain(model)
    for level in shown:
        for passed in (False, True):
            found = states[level, passed]
            if found:
                x = torch.stack([entry[1] for entry in found])
                own = {} if labels is None else {"class_labels": labels[torch.tensor([entry[2] for entry in found])]}
                witness.seen[level, passed] = (_means(chain, x, level, own), counts[level, passed])
    return witness


@torch.no_grad()
def _means(chain: Any, x: Tensor, level: int, condition: dict[str, Any]) -> Tensor:
    """What the model takes the states for; the state itself where it has no noise."""
    if chain.noise_levels[level] == 0.0:
        return x
    model = chain.denoiser
    condition = check_condition(model, condition, len(x), chain.device)
    return model(x.to(chain.device), chain.time(level), **condition).mean.cpu()


def figure(
    witness: Witness, level: int, passed: bool, data_range: tuple[float, float] | None
) -> tuple[int, str] | None:
    """(how many there were, a picture of some) as HTML; None for samples of which there is no picture."""
    from html import escape

    from trueward.reports.pictures import curves, data_uri, scatter, tiles

    if (level, passed) not in witness.seen:
        return None
    x, count = witness.seen[level, passed]
    alt = f"{len(x)} {'accepted' if passed else 'rejected'} samples at level {level}"
    if x.ndim == 4 and x.shape[1] in (1, 3):
        from trueward.data.images import to_images

        pixels = to_images(x, data_range)
        sheet = tiles(pixels, columns=math.ceil(math.sqrt(SHOWN)), gap=max(1, pixels.shape[1] // 14))
        height, width = sheet.shape[:2]
        return count, f'<img src="{data_uri(sheet)}" alt="{escape(alt)}" width="{width}" height="{height}">'
    if x.ndim == 2 and x.shape[1] == 2:
        points = torch.cat([witness.x, witness.plain]).double().numpy()
        low, high = np.quantile(points, 0.01, axis=0), np.quantile(points, 0.99, axis=0)
        middle, half = (low + high) / 2, 0.65 * max(float((high - low).max()), 1e-6)
        limits = (middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half)
        return count, scatter(x.double().numpy(), limits)
    if x.ndim in (2, 3) and x.shape[-1] > 1 and x.numel() <= 4096 * len(x):
        known = torch.cat([witness.x, witness.plain]).double()
        low, high = (float(torch.quantile(known.flatten()[:1_000_000], q)) for q in (0.001, 0.999))
        room = 0.05 * (high - low) or 1.0
        signals = x.double().reshape(len(x), -1, x.shape[-1]).numpy()
        return count, curves(signals, (low - room, high + room), columns=math.ceil(math.sqrt(SHOWN)))
    return None
