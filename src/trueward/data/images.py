"""Values to pictures and back: the inverse of the map that images are loaded with, grids for the eye, fitting to a size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trueward import records

if TYPE_CHECKING:
    from PIL.Image import Image


def to_images(x: Tensor, data_range: tuple[float, float] | None = (-1.0, 1.0)) -> np.ndarray:
    """Values as pixels: round(255 (x - low) / (high - low)), cut to 0 ... 255.

    Args:
        x: (n, channels, height, width) with 1 or 3 channels, or (n, height, width), values in data units.
        data_range: (low, high) of the data; None takes the smallest and largest value of `x`.

    Returns:
        (n, height, width, channels) uint8.

    Raises:
        ValueError: another number of axes or channels; NaN.
    """
    if x.ndim == 3:
        x = x.unsqueeze(1)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"Images must have shape (n, channels, height, width) with 1 or 3 channels, got {tuple(x.shape)}."
        )
    x = x.detach().cpu().to(torch.float64)
    if torch.isnan(x).any():
        raise ValueError("Images hold NaN, which is no pixel.")
    low, high = data_range if data_range is not None else (float(x.min()), float(x.max()))
    scale = 255.0 / (high - low) if high > low else 0.0
    pixels = ((x - low) * scale).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def grid(images: np.ndarray, columns: int | None = None, *, scale: int | None = None, gap: int = 1) -> np.ndarray:
    """One picture of many images, row after row, (height, width, channels) uint8.

    Args:
        images: (n, height, width, channels) uint8.
        columns: images in a row; default: as near to a square as can be.
        scale: every pixel becomes scale x scale pixels; default: the least that makes an image at least 32 pixels high.
        gap: grey pixels between the images, before scaling.
    """
    n, h, w, channels = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}.")
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, channels), 128, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = image
    scale = max(1, math.ceil(32 / h)) if scale is None else scale
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def save_grid(
    x: Tensor | np.ndarray,
    path: str | Path,
    columns: int | None = None,
    data_range: tuple[float, float] | None = (-1.0, 1.0),
) -> Path:
    """Writes samples as one PNG, every pixel exact; images below 32 pixels are enlarged by whole numbers.

    Args:
        x: (n, channels, height, width) values in `data_range`, or (n, height, width, channels) uint8 from :func:`to_images`.
        path: the PNG file; written under a temporary name and renamed.
        columns: images in a row; default: as near to a square as can be.
        data_range: (low, high) of the values.

    Returns:
        `path`.
    """
    from PIL import Image

    images = x if isinstance(x, np.ndarray) and x.dtype == np.uint8 else to_images(torch.as_tensor(x), data_range)
    sheet = grid(images, columns)
    picture = Image.fromarray(sheet[:, :, 0] if sheet.shape[2] == 1 else sheet)
    with records.atomic(path) as part:
        picture.save(part, format="PNG")
    return Path(path)


def fit(image: Image, size: int | None, channels: int) -> Tensor:
    """A decoded PIL image as (channels, height, width) uint8.

    With `size` the shorter side is resized to it (bicubic, with antialiasing) and the longer one cropped at both ends alike.
    Transparency is laid over white.
    """
    from PIL import Image as Pillow

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, (255, 255, 255, 255)), image)
    elif image.mode.startswith("I") or image.mode == "F":
        # 16-bit grey: Pillow's own conversion would cut at 255 instead of scaling
        values = np.asarray(image, dtype=np.float64)
        image = Pillow.fromarray((values / 257.0).round().clip(0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != (size, size):
        width, height = image.size
        ratio = size / min(width, height)
        wide, high = max(size, round(width * ratio)), max(size, round(height * ratio))
        image = image.resize((wide, high), Pillow.Resampling.BICUBIC)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = np.array(image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))
