"""Encoded pictures (PNG, JPEG, WebP, ...) as rows that are decoded when asked for."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor

from trueward.data.images import fit
from trueward.data.rows import Decoded

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 274  # the EXIF tag that says how the camera was held
_GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")


class Pictures(ABC):
    """Numbered encoded pictures, each with a name for messages."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str: ...

    @abstractmethod
    def source(self, i: int) -> str | Path | IO[bytes]:
        """What Pillow opens."""

    def open(self, i: int) -> Image:
        """Picture `i`, header read, pixels not yet."""
        from PIL import Image

        try:
            return Image.open(self.source(i))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.name(i)} is not a readable image ({_reason(error)}).") from None

    def geometry(self, i: int) -> tuple[int, int, bool]:
        """(width, height, whether grey) of picture `i`, from its header."""
        with self.open(i) as image:
            width, height = image.size
            # of a PNG, getexif() would decode all pixels in search of what stands before them
            known = image.format != "PNG" or "exif" in image.info
            if known and image.getexif().get(_ORIENTATION, 1) >= 5:
                width, height = height, width
            return width, height, image.mode in _GREY

    def decode(self, i: int, size: int | None, channels: int, refuse_colour: bool) -> Tensor:
        """Picture `i` as (channels, height, width) uint8, see :func:`trueward.data.images.fit`."""
        from PIL import Image, ImageOps

        with self.open(i) as image:
            if refuse_colour and image.mode not in _GREY:
                raise ValueError(
                    f"{self.name(i)} has colours, but the first image is grey: say channels=3 or channels=1."
                )
            try:
                if size is not None:
                    image.draft(None, (2 * size, 2 * size))  # lets JPEG skip detail that resizing would drop
                return fit(ImageOps.exif_transpose(image), size, channels)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(f"{self.name(i)} is not a readable image ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "unknown format" if text.startswith("cannot identify") else text


class Files(Pictures):
    """Picture files."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return str(self.paths[i])

    def source(self, i: int) -> Path:
        return self.paths[i]


class Encoded(Pictures, ABC):
    """Pictures that stand in a table as ``{"bytes": ..., "path": ...}``, or as bytes."""

    def __init__(self, where: str) -> None:
        self.where = where

    def name(self, i: int) -> str:
        return f"Row {i} of {self.where}"

    @abstractmethod
    def cell(self, i: int) -> object: ...

    def source(self, i: int) -> str | IO[bytes]:
        cell = self.cell(i)
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if isinstance(content, bytes):
            return io.BytesIO(content)
        if isinstance(path, str):
            return path
        raise ValueError("it holds neither bytes nor a path")


class Decoder:
    """Row number -> pixels, with the shape checked; a class, so that it can be sent to worker processes."""

    def __init__(self, pictures: Pictures, shape: tuple[int, ...], size: int | None, refuse_colour: bool) -> None:
        self.pictures = pictures
        self.shape = shape
        self.size = size
        self.refuse_colour = refuse_colour

    def __call__(self, i: int) -> Tensor:
        pixels = self.pictures.decode(i, self.size, self.shape[0], self.refuse_colour)
        if tuple(pixels.shape) != self.shape:
            raise ValueError(
                f"{self.pictures.name(i)} is {pixels.shape[2]}x{pixels.shape[1]}, but the first image is {self.shape[2]}x{self.shape[1]}: give size=... to fit all to one size."
            )
        return pixels


def picture_rows(
    pictures: Pictures,
    size: int | None,
    channels: int | None,
    data_range: tuple[float, float],
    *,
    refuse_colour: bool = True,
) -> Decoded:
    """Rows of `pictures`; where `channels` is not given, the first picture decides and a later one must not lose its colours."""
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}.")
    width, height, grey = pictures.geometry(0)
    found = channels or (1 if grey else 3)
    shape = (found, height, width) if size is None else (found, size, size)
    decoder = Decoder(pictures, shape, size, refuse_colour and channels is None and found == 1)
    return Decoded(decoder, torch.arange(len(pictures)), shape, data_range)
