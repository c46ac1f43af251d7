"""Samples for other programs: pixels for a grid, one NumPy archive, a folder of PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from trueward import records
from trueward.shards import ShardFolder


def picture_of(x: Tensor, data_range: tuple[float, float] | None) -> UInt8[np.ndarray, "n h w c"]:
    """Samples (n, channels, height, width) as pixels.

    Raises:
        ValueError: if they are no images (one or three channels).
    """
    from trueward.data.images import to_images

    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[1] not in (1, 3)):
        raise ValueError(
            f"Samples of shape {tuple(x.shape[1:])} are no images, so there is no picture of them: use --out NAME.npz."
        )
    return to_images(x, data_range)


def save_array(
    path: str | Path, x: Tensor, data_range: tuple[float, float] | None, labels: Tensor | None = None
) -> Path:
    """Writes one ``.npz`` archive, atomically: `arr_0`, and `labels` if there are any.

    Images of a stated range are stored as (n, height, width, channels) uint8 under the name ``arr_0``, which is what the
    usual evaluators of image samples read; everything else as it is, float32.
    """
    image = data_range is not None and x.ndim == 4 and x.shape[1] in (1, 3)
    arrays = {"arr_0": picture_of(x, data_range) if image else x.detach().cpu().float().numpy()}
    if labels is not None:
        arrays["labels"] = labels.cpu().numpy()
    with records.atomic(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return Path(path)


def save_images(shards: ShardFolder, folder: str | Path) -> int:
    """Writes every sample of some shards as ``000000.png``, ... named by its index; those there already are kept.

    Returns:
        how many images the folder holds.
    """
    from PIL import Image

    from trueward.shards import from_stored

    folder, count = Path(folder), 0
    for shard in shards:
        pixels = picture_of(from_stored(shard["samples"], shards.data_range), shards.data_range)
        for index, image in zip(shard["indices"].tolist(), pixels):
            count += 1
            path = folder / f"{index:06d}.png"
            if path.exists():
                continue
            with records.atomic(path) as part:
                Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(part, format="PNG")
    return count
