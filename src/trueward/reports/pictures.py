"""Samples as pictures inside a page: images as PNG data URIs, points of the plane and signals as inline SVG."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Shaped, UInt8


def tiles(images: UInt8[np.ndarray, "n h w c"], columns: int, gap: int = 1) -> UInt8[np.ndarray, "H W 4"]:
    """One picture of `columns` images side by side, row after row; the gaps between them are transparent.

    Args:
        images: (n, h, w, 1 or 3) uint8.
        columns: images in a row.
        gap: pixels between images.
    """
    n, h, w, channels = images.shape
    if channels not in (1, 3):
        raise ValueError(f"Images must have 1 or 3 channels, got {channels}.")
    rows = -(-n // columns)
    sheet = np.zeros((rows * (h + gap) - gap, columns * (w + gap) - gap, 4), dtype=np.uint8)
    for i in range(n):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w, :3] = images[i]
        sheet[top : top + h, left : left + w, 3] = 255
    return sheet


def data_uri(picture: UInt8[np.ndarray, "h w c"]) -> str:
    """A picture as ``data:image/png;base64,...``."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def scatter(points: Shaped[np.ndarray, "n 2"], limits: tuple[float, float, float, float], size: int = 180) -> str:
    """Points of the plane as an SVG element.

    Args:
        points: (n, 2).
        limits: (x low, x high, y low, y high) of the picture; points outside are left out.
        size: width and height in pixels.
    """
    x_low, x_high, y_low, y_high = limits
    x = (points[:, 0] - x_low) / (x_high - x_low) * size
    y = size - (points[:, 1] - y_low) / (y_high - y_low) * size
    inside = (x >= 0) & (x <= size) & (y >= 0) & (y <= size)
    dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x[inside], y[inside]))
    return f'<svg class="scatter" viewBox="0 0 {size} {size}" role="img" aria-label="{int(inside.sum())} samples"><path d="{dots}"/></svg>'


def curves(
    signals: Shaped[np.ndarray, "n channels length"], limits: tuple[float, float], columns: int = 4, size: int = 180
) -> str:
    """Signals as an SVG element: one small field for each, its channels as curves over each other.

    Args:
        signals: (n, channels, length) with a length of at least 2.
        limits: (low, high) of every field; curves are cut there.
        columns: fields in a row.
        size: width in pixels; the height follows from the number of rows.
    """
    n, _, length = signals.shape
    low, high = limits
    field = size / columns
    rows = -(-n // columns)
    inner, margin = 0.86 * field, 0.07 * field
    height = (1.0 - (np.clip(signals, low, high) - low) / (high - low)) * inner
    across = np.linspace(0.0, inner, length)
    paths = []
    for k in range(n):
        left, top = (k % columns) * field + margin, (k // columns) * field + margin
        for channel in height[k]:
            points = "L".join(f"{left + a:.1f} {top + b:.1f}" for a, b in zip(across, channel))
            paths.append(f"M{points}")
    return (
        f'<svg class="scatter curves" viewBox="0 0 {size} {rows * field:.0f}" role="img" aria-label="{n} signals">'
        f'<path d="{"".join(paths)}"/></svg>'
    )
