"""Line charts as inline SVG: curves with error bars over a logarithmic or linear axis, readable in light and dark.

Colours are CSS classes ``series-0`` ... ``series-7`` that the page defines for both modes; every series also has a marker of
its own, so that no curve is told by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 42
COLOURS = 8


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: what the tooltip says.
        x, y: the points; a y that is not finite leaves a gap.
        spread: half the length of the error bar at every point (0: none).
        colour: 0 ... 7, also the marker.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = field(default_factory=tuple)
    colour: int = 0


def number(value: float) -> str:
    """A number as a reader likes it: three significant digits, no exponent where it can be helped."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10000 or size < 0.0001:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    text = f"{value:.{digits}f}"
    return text


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Three to seven round numbers inside [low, high]."""
    if log:
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            found = [s * 10.0**d for d in decades for s in steps if low * 0.999 <= s * 10.0**d <= high * 1.001]
            if len(found) >= 3:
                return found if len(found) <= 7 else found[:: math.ceil(len(found) / 7)]
        if high / low > 1.5:
            return found
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(s for s in (1, 2, 2.5, 5, 10) if span / (step * s) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Axis:
    """A value's place between two ends in pixels."""

    low: float
    high: float
    begin: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)


def marker(shape: int, x: float, y: float, size: float = 4.2) -> str:
    """The marker of a series at (x, y)."""
    s = size
    match shape % COLOURS:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s}"/>'
        case 1:
            return f'<rect x="{x - s * 0.9:.1f}" y="{y - s * 0.9:.1f}" width="{s * 1.8:.1f}" height="{s * 1.8:.1f}"/>'
        case 2:
            corners = [(0, -1.25), (1.15, 0.9), (-1.15, 0.9)]
        case 3:
            corners = [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)]
        case 4:
            corners = [(0, 1.25), (1.15, -0.9), (-1.15, -0.9)]
        case 5:
            corners = [(1.25, 0), (-0.9, 1.15), (-0.9, -1.15)]
        case 6:
            corners = [(-1.25, 0), (0.9, 1.15), (0.9, -1.15)]
        case _:
            corners = [(math.sin(a) * 1.3, -math.cos(a) * 1.3) for a in (2 * math.pi * k / 5 for k in range(5))]
    return '<polygon points="' + " ".join(f"{x + s * a:.1f},{y + s * b:.1f}" for a, b in corners) + '"/>'


def legend_mark(colour: int) -> str:
    """A small line with its marker, for a legend."""
    return (
        f'<svg class="mark series-{colour % COLOURS}" viewBox="0 0 26 12" aria-hidden="true">'
        f'<path class="line" d="M1 6H25"/>{marker(colour, 13, 6)}</svg>'
    )


def _range(values: list[float], log: bool, bounds: tuple[float, float] | None) -> tuple[float, float]:
    if bounds is not None:
        return bounds
    low, high = min(values), max(values)
    if log:
        pad = max((high / low) ** 0.06, 1.03)
        return low / pad, high * pad
    pad = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.5 * high else low - pad), high + pad


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_ticks: Sequence[float] = (),
    log_x: bool = True,
    log_y: bool | None = None,
    y_bounds: tuple[float, float] | None = None,
    floor: tuple[float, str] | None = None,
) -> str:
    """The chart as an SVG element.

    Args:
        series: the curves.
        x_label, y_label: names of the axes with their units.
        x_ticks: where to mark x (default: chosen).
        log_x, log_y: logarithmic axes; `log_y` None decides by itself (positive values over more than a factor 8).
        y_bounds: ends of the y axis (default: from the data).
        floor: a dashed horizontal line (value, name).
    """
    points = [(x, y) for s in series for x, y in zip(s.x, s.y) if math.isfinite(y)]
    if not points:
        return f'<p class="note">No finite values of {escape(y_label)}.</p>'
    ys = [y for _, y in points]
    if floor is not None and math.isfinite(floor[0]):
        ys.append(floor[0])
    else:
        floor = None
    log_y = (min(ys) > 0 and max(ys) / min(ys) > 8) if log_y is None else log_y and min(ys) > 0
    for s in series:
        for y, d in zip(s.y, s.spread):
            if math.isfinite(y + d):
                ys += [y + d] + ([y - d] if not log_y or y - d > 0 else [])
    xs = [x for x, _ in points]
    log_x = log_x and min(xs) > 0
    x_axis = _Axis(*_spread_ends(*_range(xs, log_x, None), log_x), LEFT + 8, WIDTH - RIGHT - 8, log_x)
    y_axis = _Axis(*_range(ys, log_y, y_bounds), HEIGHT - BOTTOM, TOP, log_y)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} against {escape(x_label)}">'
    ]
    for value in ticks(y_axis.low, y_axis.high, log_y):
        y = y_axis(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
    for value in x_ticks or ticks(x_axis.low, x_axis.high, log_x):
        x = x_axis(value)
        parts.append(f'<path class="axis" d="M{x:.1f} {HEIGHT - BOTTOM}v5"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_tick(value)}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    if floor is not None:
        y = y_axis(floor[0])
        parts.append(f'<path class="floor" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="floor-label" x="{LEFT + 4}" y="{y - 5:.1f}">{escape(floor[1])}</text>')
    for s in series:
        parts.append(_curve(s, x_axis, y_axis))
    return "".join(parts) + "</svg>"


def _spread_ends(low: float, high: float, log: bool) -> tuple[float, float]:
    """A single x gets room to both sides."""
    if high / low < 1.2 if log else high - low < 1e-9:
        return (low / 1.5, high * 1.5) if log else (low - 1, high + 1)
    return low, high


def _tick(value: float) -> str:
    return f"{value:g}" if 0.001 <= abs(value) < 100000 or value == 0 else f"{value:.0e}"


def _curve(s: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    parts = [f'<g class="series-{s.colour % COLOURS}">']
    path, pen = [], "M"
    for x, y in zip(s.x, s.y):
        if not math.isfinite(y):
            pen = "M"
            continue
        path.append(f"{pen}{x_axis(x):.1f} {y_axis(y):.1f}")
        pen = "L"
    parts.append(f'<path class="line" d="{"".join(path)}"/>')
    spreads = list(s.spread) or [0.0] * len(s.x)
    for x, y, d in zip(s.x, s.y, spreads):
        if not math.isfinite(y):
            continue
        px, py = x_axis(x), y_axis(y)
        if d > 0 and math.isfinite(d):
            top = y_axis(min(y + d, y_axis.high))
            bottom = y_axis(max(y - d, y_axis.low))
            parts.append(
                f'<path class="bar" d="M{px:.1f} {top:.1f}V{bottom:.1f}M{px - 3:.1f} {top:.1f}h6M{px - 3:.1f} {bottom:.1f}h6"/>'
            )
        said = f"{s.name}, {x:g}: {number(y)}" + (f" ± {number(d)}" if d > 0 else "")
        parts.append(f"<g><title>{escape(said)}</title>{marker(s.colour, px, py)}</g>")
    return "".join(parts) + "</g>"
