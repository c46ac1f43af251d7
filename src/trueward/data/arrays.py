"""Arrays and tensors as datasets: uint8 images are mapped to a range, floats are taken as they are."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.data.dataset import Dataset, check_range, check_values
from trueward.data.rows import Dense, Quantised, Rows
from trueward.naming import check_name

IMAGE_RANGE = (-1.0, 1.0)


def channels_first(x: Tensor) -> Tensor:
    """(n, h, w) -> (n, 1, h, w) and (n, h, w, c) -> (n, c, h, w) for c = 1, 3 or 4; everything else as it is.

    Four axes whose second is 1 or 3 are taken as channels first already.
    """
    if x.ndim == 3:
        return x.unsqueeze(1)
    if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3, 4):
        return x.permute(0, 3, 1, 2).contiguous()
    return x


def as_rows(x: Any, data_range: tuple[float, float] | str | None) -> tuple[Rows, tuple[float, float] | None]:
    """Rows of an array or tensor (n, ...) and the range of their values.

    uint8 images become values in `data_range` with 256 levels; floats and other whole numbers keep their values, which must
    lie in `data_range`. "auto" is [-1, 1] for images and no range for vectors (n, d).
    """
    try:
        tensor = torch.as_tensor(x).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Data must be an array of numbers, got {type(x).__name__} ({error}).") from None
    if tensor.ndim < 2:
        raise ValueError(f"Data must have shape (n, *shape) with at least two axes, got {tuple(tensor.shape)}.")
    image = tensor.ndim > 2
    tensor = channels_first(tensor)
    if tensor.dtype == torch.uint8 and image:
        wanted = IMAGE_RANGE if data_range == "auto" else check_range(data_range)  # type: ignore[arg-type]
        if wanted is None:
            raise ValueError("uint8 images are mapped to data_range, so it cannot be None.")
        return Quantised(tensor, 256, wanted), wanted
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.float32)
    if data_range != "auto":
        wanted = check_range(data_range)  # type: ignore[arg-type]
    elif not image:
        wanted = None
    else:
        wanted = IMAGE_RANGE
        if tensor.numel() and float(tensor.min()) >= 0.0:
            raise ValueError(
                f"The images hold values in [{float(tensor.min()):g}, {float(tensor.max()):g}], none below 0: state their range, e.g. data_range=(0, 1)."
            )
    check_values(tensor, wanted)
    return Dense(tensor), wanted


def load_numpy(path: Path, split: str, x_key: str | None, labels_key: str | None) -> tuple[np.ndarray, Any]:
    """(x, labels or None) of a ``.npy`` or ``.npz`` file.

    In an archive: `x_key` / `labels_key` if given; else ``x_train, y_train`` and ``x_test, y_test`` by `split`; else ``x``
    (or ``images``, ``data``, ``samples``, ``arr_0``) and ``y`` (or ``labels``).
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            one_split(path, split)
            return stored, None
        with stored:
            keys = list(stored.files)
            pairs = _pairs(path, keys, split, x_key, labels_key)
            parts = [(stored[x], None if y is None else stored[y]) for x, y in pairs]
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise ValueError(f"{path} holds Python objects, which are never unpickled; store plain numbers.") from None
        raise
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a NumPy file ({error}).") from None
    labels = None if any(y is None for _, y in parts) else np.concatenate([y for _, y in parts if y is not None])
    return np.concatenate([x for x, _ in parts]), labels


def one_split(path: Path | str, split: str) -> None:
    """Refuses the test split of data that come in one piece."""
    if split == "test":
        raise ValueError(
            f"{path} has no test split; load it with split='all' and hold a part out with Dataset.split(fraction)."
        )


def _pairs(
    path: Path, keys: list[str], split: str, x_key: str | None, labels_key: str | None
) -> list[tuple[str, str | None]]:
    if x_key is not None:
        check_name(f"array in {path.name}", x_key, keys)
        if labels_key is not None:
            check_name(f"array in {path.name}", labels_key, keys)
        return [(x_key, labels_key)]
    if "x_train" in keys:
        wanted = ["train", "test"] if split == "all" else [split]
        if split == "test" and "x_test" not in keys:
            one_split(path, split)
        return [(f"x_{part}", f"y_{part}" if f"y_{part}" in keys else None) for part in wanted if f"x_{part}" in keys]
    one_split(path, split)
    for x in ("x", "images", "data", "samples", "arr_0"):
        if x in keys:
            y = labels_key or next((y for y in ("y", "labels", "label") if y in keys), None)
            return [(x, check_name(f"array in {path.name}", y, keys) if y else None)]
    raise ValueError(f"{path} holds {', '.join(keys)}, but none of x, x_train: name the array with x_key=...")


def from_array(
    x: Any,
    labels: Any = None,
    *,
    data_range: tuple[float, float] | str | None = "auto",
    name: str = "array",
    num_classes: int | None = None,
    class_names: list[str] | None = None,
    origin: dict[str, Any] | None = None,
) -> Dataset:
    """A :class:`Dataset` of an array or tensor (n, ...) and labels (n,) or None."""
    rows, found = as_rows(x, data_range)
    if isinstance(rows, Quantised) and len(rows.shape) == 3 and rows.shape[0] not in (1, 3):
        raise ValueError(
            f"uint8 images must have 1 or 3 channels, got shape {rows.shape}; drop the others (e.g. alpha) first."
        )
    return Dataset(
        rows,
        labels,
        data_range=found,
        num_classes=num_classes,
        name=name,
        class_names=class_names,
        origin=origin,
    )
