"""A folder of pictures, whatever its depth; sub-folders are classes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from trueward.data.arrays import one_split
from trueward.data.dataset import Dataset
from trueward.data.pictures import Files, picture_rows

_SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}


def split_folders(folder: Path, split: str) -> list[Path]:
    """The folders that make up a split: ``train`` and ``test`` if there are such sub-folders, else the folder itself."""
    found = {name: next((folder / n for n in names if (folder / n).is_dir()), None) for name, names in _SPLITS.items()}
    if found["train"] is None:
        one_split(folder, split)
        return [folder]
    if split == "all":
        return [part for part in found.values() if part is not None]
    part = found[split]
    if part is None:
        raise ValueError(f"{folder} has no {split} split: there is no folder {split} in it.")
    return [part]


def _listing(folder: Path) -> list[Path]:
    """All files below `folder`, hidden ones left out, sorted by their path from it."""
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(files, key=lambda path: path.relative_to(folder).parts)


def _readable(paths: list[Path], size: int | None) -> list[Path]:
    """The files that decode completely; the others are named in a warning."""
    good, bad = [], []
    files = Files(paths)
    for i, path in enumerate(paths):
        try:
            files.decode(i, size, 3, False)
            good.append(path)
        except ValueError:
            bad.append(path)
    if bad:
        warnings.warn(
            f"Skipped {len(bad)} files that are not readable images, first {bad[0]}.", UserWarning, stacklevel=5
        )
    return good


def load_folder(
    folder: Path,
    split: str,
    size: int | None,
    labels: Any,
    data_range: tuple[float, float],
    *,
    channels: int | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """Pictures below `folder`, sorted by path. If all of them lie in sub-folders, these are the classes, in sorted order.

    Args:
        folder: with ``train`` and ``test`` folders in it, or without.
        split: train, test or all.
        size: pictures are resized and cropped to size x size; None: all must have one size.
        labels: (n,) labels, False for none, None for the sub-folders.
        data_range: values of black and white.
        channels: 1 or 3; None: 3 if any of the pictures has colours.
        skip_unreadable: leave out files that are not pictures, at the price of decoding everything once.

    Raises:
        ValueError: no pictures; a file that is none, by its name; pictures of several sizes without `size`.
    """
    parts = [(root, path) for root in split_folders(folder, split) for path in _listing(root)]
    if skip_unreadable:
        good = set(_readable([path for _, path in parts], size))
        parts = [(root, path) for root, path in parts if path in good]
    if not parts:
        raise ValueError(f"{folder} holds no images.")
    files = Files([path for _, path in parts])
    geometries = [files.geometry(i) for i in range(len(files))]
    if size is None:
        for i, (width, height, _) in enumerate(geometries):
            if (width, height) != geometries[0][:2]:
                raise ValueError(
                    f"{files.name(i)} is {width}x{height}, but {files.name(0)} is {geometries[0][0]}x{geometries[0][1]}: give size=... to fit all to one size."
                )
    channels = channels if channels is not None else 1 if all(grey for *_, grey in geometries) else 3
    rows = picture_rows(files, size, channels, data_range)
    names = None
    if labels is None:
        classes = [path.relative_to(root).parts[0] if path.parent != root else None for root, path in parts]
        if all(c is not None for c in classes):
            names = sorted({c for c in classes if c is not None})
            number = {c: i for i, c in enumerate(names)}
            labels = [number[c] for c in classes if c is not None]
    return Dataset(
        rows, None if labels is False else labels, data_range=data_range, name=folder.name, class_names=names
    )
