"""Any data as a :class:`Dataset`: a name, a file, a folder, an array, a Hugging Face dataset."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.data.arrays import IMAGE_RANGE, from_array, load_numpy
from trueward.data.builtin import digits, mnist
from trueward.data.dataset import Dataset, check_labels, check_range
from trueward.data.folders import load_folder
from trueward.data.images import fit
from trueward.data.rows import Quantised
from trueward.data.tables import load_disk, load_hub, load_huggingface, load_parquet
from trueward.naming import check_name

_NAMES = {"digits": digits, "mnist": mnist}
_PICTURES = ("channels", "skip_unreadable")
_TABLE = ("channels", "image")
_NUMPY = ("x_key", "labels_key")


def load_data(
    spec: Any,
    *,
    split: str = "train",
    size: int | None = None,
    labels: Any = None,
    data_range: tuple[float, float] | str | None = "auto",
    limit: int | None = None,
    num_classes: int | None = None,
    name: str | None = None,
    **options: Any,
) -> Dataset:
    """Any data as a :class:`Dataset`, in the same order every time.

    Args:
        spec: one of

            * ``"digits"``: 1797 real handwritten digits 8x8 that need no download (1500 train, 297 test);
            * ``"mnist"``: MNIST from ``mnist.npz`` (in $TRUEWARD_DATA, ``../shared/data`` or ``~/.cache/trueward``);
            * a folder of pictures, at any depth, sub-folders being the classes, ``train``/``test`` the splits;
            * a ``.npy`` or ``.npz`` file (``x_train, y_train, x_test, y_test``, or ``x, y``);
            * a ``.parquet`` file, or a folder of them, with a column of pictures and one of labels;
            * a folder written by ``datasets.save_to_disk``, a ``datasets.Dataset``, or ``"hf:NAME"`` for one of the hub;
            * an array or tensor (n, *shape), or a tuple (x, labels);
            * a :class:`Dataset`, which only `limit` applies to.
        split: "train", "test" or "all". Data in one piece are their own train split: hold a part out with ``Dataset.split``.
        size: pictures are resized to this shorter side and cropped to a square; None: they must all have one size.
        labels: (n,) labels, or the name of the column; False: leave the labels out; None: those that come with the data.
        data_range: (low, high). Pictures and uint8 images are mapped to it; float data must lie in it. "auto": (-1, 1) for
            images, None (no range) for vectors (n, d).
        limit: only the first so many samples.
        num_classes: if larger than the labels show.
        name: what to call the data in reports.
        **options: ``channels`` (1 or 3; pictures), ``skip_unreadable`` (folders), ``image`` (name of the column; tables),
            ``x_key``, ``labels_key`` (names of the arrays; npz).

    Returns:
        the dataset. uint8 images (n, h, w) get a channel axis and (n, h, w, c) are moved to channels first.

    Raises:
        ValueError: unknown name or option, data that are not there or not readable (naming the file), values outside
            `data_range` or not finite, labels out of range.
    """
    check_name("split", split, ("train", "test", "all"))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    if isinstance(data_range, str) and data_range != "auto":
        raise ValueError(f"data_range must be (low, high), None or 'auto', got {data_range!r}.")
    found = _load(spec, split, size, labels, data_range, options)
    if limit is not None:
        found = found.subset(slice(0, limit))
    if num_classes is not None:
        if found.labels is None:
            raise ValueError(f"num_classes={num_classes} was given, but the data have no labels.")
        found.labels, found.num_classes = check_labels(found.labels, len(found), num_classes)
    if name is not None:
        found.name = name
    if isinstance(spec, str | os.PathLike) and (labels is None or isinstance(labels, str | bool)):
        known = {"split": split, "size": size, "labels": labels, "data_range": data_range, "limit": limit}
        known |= {"num_classes": num_classes, "name": name, **options}
        text = str(spec)
        place = text if text in _NAMES or text.startswith("hf:") else str(Path(text).expanduser().resolve())
        found.origin = {"spec": place, **{key: value for key, value in known.items() if value is not None}}
    return found


def _load(
    spec: Any,
    split: str,
    size: int | None,
    labels: Any,
    data_range: tuple[float, float] | str | None,
    options: dict[str, Any],
) -> Dataset:
    pictures = IMAGE_RANGE if isinstance(data_range, str) else check_range(data_range)
    if isinstance(spec, Dataset):
        _allow(options, "a Dataset", ())
        if labels is not None or size is not None:
            raise ValueError("labels and size cannot be changed on a Dataset that is already loaded.")
        return copy.copy(spec)  # the name may be changed below
    if type(spec).__module__.partition(".")[0] == "datasets":
        _allow(options, "a Hugging Face dataset", _TABLE)
        return load_huggingface(spec, split, size, labels, data_range, _needed(pictures), **options)
    if isinstance(spec, str | os.PathLike):
        return _load_named(str(spec), split, size, labels, data_range, pictures, options)
    _allow(options, "an array", ())
    if isinstance(spec, tuple) and len(spec) == 2:
        spec, own = spec
        labels = own if labels is None else labels
    if not isinstance(spec, Tensor | np.ndarray | list):
        raise ValueError(
            f"Data must be a name, a path, an array, a tensor, (x, labels) or a Hugging Face dataset, got {type(spec).__name__}."
        )
    if split == "test":
        raise ValueError("An array has no test split; hold a part out with Dataset.split(fraction).")
    return _resized(from_array(spec, None if labels is False else labels, data_range=data_range), size)


def _load_named(
    spec: str,
    split: str,
    size: int | None,
    labels: Any,
    data_range: tuple[float, float] | str | None,
    pictures: tuple[float, float] | None,
    options: dict[str, Any],
) -> Dataset:
    if spec in _NAMES:
        _allow(options, f"the data {spec!r}", ())
        return _relabelled(_resized(_NAMES[spec](split, data_range), size), labels)
    if spec.startswith("hf:"):
        _allow(options, "a Hugging Face dataset", _TABLE)
        data = load_hub(spec[3:])
        return load_huggingface(
            data, split, size, labels, data_range, _needed(pictures), name=spec[3:].rpartition("/")[2], **options
        )
    path = Path(spec).expanduser()
    if not path.exists():
        if os.sep in spec or path.suffix:
            raise ValueError(f"The data {spec!r} do not exist.")
        check_name("data", spec, [*_NAMES, "hf:NAME", "the path of a file or folder"])
    if path.is_dir():
        if any((path / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
            _allow(options, "a Hugging Face dataset", _TABLE)
            return load_huggingface(
                load_disk(path), split, size, labels, data_range, _needed(pictures), name=path.name, **options
            )
        if any(path.rglob("*.parquet")):
            _allow(options, "parquet", _TABLE)
            return load_parquet(path, split, size, labels, data_range, _needed(pictures), **options)
        _allow(options, "a folder of images", _PICTURES)
        return load_folder(path, split, size, labels, _needed(pictures), **options)
    if path.suffix == ".parquet":
        _allow(options, "parquet", _TABLE)
        return load_parquet(path, split, size, labels, data_range, _needed(pictures), **options)
    if path.suffix in (".npy", ".npz"):
        _allow(options, "a NumPy file", _NUMPY)
        x, own = load_numpy(path, split, options.get("x_key"), options.get("labels_key"))
        wanted = None if labels is False else own if labels is None else labels
        return _resized(from_array(x, wanted, data_range=data_range, name=path.stem), size)
    raise ValueError(f"{spec} is neither a folder nor a .npz, .npy or .parquet file.")


def _allow(options: dict[str, Any], what: str, known: tuple[str, ...]) -> None:
    for option in options:
        if not known:
            raise ValueError(f"{option}={options[option]!r} does not apply to {what}.")
        check_name(f"option of {what}", option, known)


def _needed(data_range: tuple[float, float] | None) -> tuple[float, float]:
    if data_range is None:
        raise ValueError("Pictures are mapped to data_range, so it cannot be None.")
    return data_range


def _relabelled(data: Dataset, labels: Any) -> Dataset:
    if labels is None:
        return data
    data.labels, data.num_classes = check_labels(None if labels is False else labels, len(data), None)
    data.class_names = None
    return data


def _resized(data: Dataset, size: int | None) -> Dataset:
    """Images of 256 levels in memory fitted to size x size."""
    if size is None or data.shape[1:] == (size, size):
        return data
    if not (isinstance(data.rows, Quantised) and data.levels == 256 and len(data.shape) == 3):
        raise ValueError(
            f"size={size} applies to images of 256 levels, but {data.name!r} has shape {data.shape} and levels={data.levels}."
        )
    from PIL import Image

    pixels = data.rows.codes.permute(0, 2, 3, 1).numpy()
    if pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    codes = torch.stack([fit(Image.fromarray(image), size, data.shape[0]) for image in pixels])
    data.rows = Quantised(codes, 256, data.rows.data_range)
    return data
