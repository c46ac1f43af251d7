"""Histograms and heat maps as inline SVG, in the manner of :mod:`trueward.reports.charts`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

from trueward.reports.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, number, ticks


@dataclass(frozen=True)
class Sample:
    """Values to count.

    Attributes:
        name: what the tooltip says.
        values: the numbers; those that are not finite are left out.
        colour: 0 ... 7.
    """

    name: str
    values: Sequence[float] | np.ndarray
    colour: int = 0


def histogram(
    samples: Sequence[Sample],
    x_label: str,
    *,
    bins: int | None = None,
    whole: bool = False,
    bounds: tuple[float, float] | None = None,
    line: float | None = None,
) -> str:
    """Shares of values over common bins, outlined and lightly filled.

    Args:
        samples: up to a few; each is normalised by itself.
        x_label: name of the axis.
        bins: how many; default by the number of values.
        whole: the values are whole numbers: bins are centred on them.
        bounds: ends of the axis; default all values but the outermost 0.5 % on either side. Values beyond count in the last bin.
        line: where to draw a vertical line.
    """
    finite = [np.asarray(s.values, dtype=np.float64) for s in samples]
    finite = [v[np.isfinite(v)] for v in finite]
    everything = np.concatenate(finite) if finite else np.zeros(0)
    if not everything.size:
        return f'<p class="note">No values of {escape(x_label)}.</p>'
    bins = min(40, max(12, round(1.5 * math.sqrt(min(v.size for v in finite if v.size))))) if bins is None else bins
    low, high = bounds or (float(np.quantile(everything, 0.005)), float(np.quantile(everything, 0.995)))
    if whole:
        low, high = math.floor(low) - 0.5, math.ceil(high) + 0.5
        # values that come in steps of two (Heun) get bins of two, or every other one would be empty
        grain = int(np.gcd.reduce((everything - everything.min()).astype(np.int64))) or 1
        width = grain * max(1, math.ceil((high - low) / (grain * bins)))
        edges = np.arange(low, high + width, width)
    else:
        pad = 0.02 * (high - low) or 0.5
        edges = np.linspace(low - pad, high + pad, bins + 1)
    shares = [np.histogram(v.clip(edges[0], edges[-1]), edges)[0] / max(1, v.size) for v in finite]
    top = max(float(share.max()) for share in shares) * 1.08 or 1.0
    x0, x1, y0, y1 = LEFT + 4, WIDTH - RIGHT - 4, HEIGHT - BOTTOM, TOP

    def x_of(value: float) -> float:
        return x0 + (value - edges[0]) / (edges[-1] - edges[0]) * (x1 - x0)

    def y_of(value: float) -> float:
        return y0 + value / top * (y1 - y0)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram of {escape(x_label)}">'
    ]
    for value in ticks(0.0, top, False):
        parts.append(f'<path class="grid" d="M{LEFT} {y_of(value):.1f}H{WIDTH - RIGHT}"/>')
        label = f"{100 * value:g}%"
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y_of(value) + 4:.1f}" text-anchor="end">{label}</text>')
    for value in ticks(float(edges[0]), float(edges[-1]), False):
        parts.append(f'<path class="axis" d="M{x_of(value):.1f} {y0}v5"/>')
        parts.append(f'<text class="tick" x="{x_of(value):.1f}" y="{y0 + 18}" text-anchor="middle">{value:g}</text>')
    for s, share in zip(samples, shares):
        path = f"M{x_of(edges[0]):.1f} {y0}"
        for k, value in enumerate(share):
            path += f"V{y_of(value):.1f}H{x_of(edges[k + 1]):.1f}"
        mean = float(np.mean(np.asarray(s.values, dtype=np.float64)))
        parts.append(
            f'<g class="series-{s.colour % 8}"><title>{escape(s.name)}, mean {number(mean)}</title>'
            f'<path class="area" d="{path}V{y0}Z"/><path class="line" d="{path}V{y0}"/></g>'
        )
    if line is not None and edges[0] < line < edges[-1]:
        parts.append(f'<path class="floor" d="M{x_of(line):.1f} {y0}V{y1}"/>')
    parts.append(f'<path class="axis" d="M{LEFT} {y0}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts) + "</svg>"


def heat_map(counts: Float[np.ndarray, "rows columns"], x_label: str, y_label: str, unit: str) -> str:
    """A table of counts as squares whose strength is that of the logarithm of the count; empty ones are left out.

    Args:
        counts: rows from top to bottom, columns from left to right; both are numbered from 0.
        x_label, y_label: names of the axes.
        unit: what is counted, for the tooltips.
    """
    rows, columns = counts.shape
    most = float(counts.max()) if counts.size else 0.0
    if most <= 0:
        return f'<p class="note">There were no {escape(unit)}.</p>'
    size = HEIGHT - BOTTOM - TOP
    cell_w, cell_h = min(size * 1.25, WIDTH - LEFT - RIGHT) / columns, size / rows
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} against {escape(x_label)}">'
    ]
    for i, j in zip(*np.nonzero(counts)):
        strength = 0.15 + 0.85 * math.log1p(float(counts[i, j])) / math.log1p(most)
        parts.append(
            f'<rect class="heat" x="{LEFT + j * cell_w:.1f}" y="{TOP + i * cell_h:.1f}" width="{cell_w:.1f}" '
            f'height="{cell_h:.1f}" opacity="{strength:.2f}"><title>{i} to {j}: {number(float(counts[i, j]))} {escape(unit)}'
            "</title></rect>"
        )
    for k in sorted({0, columns - 1, *(round(v) for v in ticks(0, columns - 1, False) if v == round(v))}):
        x = LEFT + (k + 0.5) * cell_w
        parts.append(f'<text class="tick" x="{x:.1f}" y="{TOP + size + 16}" text-anchor="middle">{k}</text>')
    for k in sorted({0, rows - 1, *(round(v) for v in ticks(0, rows - 1, False) if v == round(v))}):
        y = TOP + (k + 0.5) * cell_h + 4
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y:.1f}" text-anchor="end">{k}</text>')
    parts.append(
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{cell_w * columns:.1f}" height="{cell_h * rows:.1f}"/>'
        f'<text class="label" x="{LEFT + cell_w * columns / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="label" transform="translate(14 {TOP + size / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts) + "</svg>"
