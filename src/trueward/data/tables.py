"""Tables with a column of pictures and one of labels: parquet files and Hugging Face datasets.

A picture is a struct ``{bytes, path}`` (how Hugging Face stores it), bytes, or nested lists of numbers already decoded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trueward.data.arrays import as_rows, one_split
from trueward.data.dataset import Dataset
from trueward.data.pictures import Encoded, picture_rows
from trueward.data.rows import Rows
from trueward.naming import check_name

_IMAGE = ("image", "img", "images", "x", "pixel_values", "data")
_LABEL = ("label", "labels", "y", "target", "class", "fine_label")
_SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}


def _missing(package: str) -> ValueError:
    return ValueError(f'This needs the package {package}: pip install "trueward[datasets]".')


def _columns(where: str, names: list[str], image: str | None, labels: Any) -> tuple[str, str | None]:
    """Names of the image and the label column."""
    if image is None:
        image = next((name for name in _IMAGE if name in names), None)
        if image is None:
            raise ValueError(f"{where} has the columns {', '.join(names)}: say with image=... which holds the images.")
    check_name(f"column of {where}", image, names)
    if isinstance(labels, str):
        return image, check_name(f"column of {where}", labels, names)
    return image, next((name for name in _LABEL if name in names and name != image), None) if labels is None else None


def _numbered(values: list[Any], names: list[str] | None, where: str) -> tuple[Any, list[str] | None]:
    """Labels as whole numbers; text is numbered in sorted order."""
    if any(value is None for value in values):
        raise ValueError(f"{where} has rows without a label; choose another column or labels=False.")
    if values and isinstance(values[0], str):
        names = sorted(set(values))
        number = {name: i for i, name in enumerate(names)}
        return [number[value] for value in values], names
    return np.asarray(values), names


class ArrowPictures(Encoded):
    """A column of a pyarrow table."""

    def __init__(self, where: str, column: Any) -> None:
        super().__init__(where)
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def cell(self, i: int) -> object:
        return self.column[i].as_py()


class HuggingFacePictures(Encoded):
    """A column of a ``datasets.Dataset`` whose pictures are left encoded."""

    def __init__(self, where: str, data: Any, column: str) -> None:
        super().__init__(where)
        self.data = data
        self.column = column

    def __len__(self) -> int:
        return len(self.data)

    def cell(self, i: int) -> object:
        return self.data[i][self.column]


def parquet_files(path: Path, split: str) -> list[Path]:
    """The parquet files of a split, sorted: the file itself, or in a folder those whose name begins with the split's."""
    if path.is_file():
        one_split(path, split)
        return [path]
    files = sorted(path.rglob("*.parquet"))
    parts = {part: [f for f in files if f.name.startswith(names)] for part, names in _SPLITS.items()}
    if not parts["train"]:
        one_split(path, split)
        return files
    if split == "all":
        return parts["train"] + parts["test"]
    if not parts[split]:
        raise ValueError(f"{path} has no {split} split: no parquet file in it begins with {split}.")
    return parts[split]


def load_parquet(
    path: Path,
    split: str,
    size: int | None,
    labels: Any,
    data_range: tuple[float, float] | str | None,
    picture_range: tuple[float, float],
    *,
    channels: int | None = None,
    image: str | None = None,
) -> Dataset:
    """A parquet file, or a folder of them, as a dataset; pictures stay encoded in memory until they are asked for.

    Args:
        path: the file or folder.
        split: train, test or all, by the names of the files in a folder.
        size: see :func:`trueward.data.images.fit`.
        labels: name of the label column, (n,) labels, False for none; None: ``label`` or the like, if there is one.
        data_range: range of decoded values.
        picture_range: values of black and white in pictures.
        channels: 1 or 3; None: as the first picture.
        image: name of the image column; None: ``image`` or the like.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise _missing("pyarrow") from None
    files = parquet_files(path, split)
    try:
        schema = pq.read_schema(files[0])
        image, label = _columns(str(path), schema.names, image, labels)
        wanted = [image] + ([label] if label else [])
        table = pa.concat_tables([pq.read_table(file, columns=wanted) for file in files])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]}).") from None
    if table.num_rows == 0:
        raise ValueError(f"{path} has no rows.")
    column = table.column(image)
    found: tuple[float, float] | None
    rows: Rows
    if pa.types.is_struct(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        rows = picture_rows(ArrowPictures(str(path), column), size, channels, picture_range)
        found = picture_range
    else:
        rows, found = _decoded_rows(column.to_pylist(), str(path), image, data_range, column.type)
    names: list[str] | None = None
    if label is not None:
        names = _class_names(schema.metadata, label)
        labels, names = _numbered(table.column(label).to_pylist(), names, f"Column {label} of {path}")
    return Dataset(rows, None if labels is False else labels, data_range=found, name=path.stem, class_names=names)


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The names of the classes that Hugging Face writes into a parquet schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _decoded_rows(
    values: list[Any], where: str, column: str, data_range: tuple[float, float] | str | None, kind: Any
) -> tuple[Rows, tuple[float, float] | None]:
    """Rows of nested lists; whole numbers in 0 ... 255 with two or three axes are images of 256 levels."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"Column {column} of {where} holds lists of several lengths, so it is no array.") from None
    if array.dtype == object or array.dtype.kind not in "uifb":
        raise ValueError(f"Column {column} of {where} has type {kind}, which holds neither images nor numbers.")
    if array.dtype.kind in "ui" and array.ndim > 2 and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)
    return as_rows(array, data_range)


def load_huggingface(
    data: Any,
    split: str,
    size: int | None,
    labels: Any,
    data_range: tuple[float, float] | str | None,
    picture_range: tuple[float, float],
    *,
    channels: int | None = None,
    image: str | None = None,
    name: str = "dataset",
) -> Dataset:
    """A ``datasets.Dataset`` or ``datasets.DatasetDict``; the arguments are those of :func:`load_parquet`."""
    import datasets

    if isinstance(data, datasets.DatasetDict):
        parts = {part: next((data[n] for n in names if n in data), None) for part, names in _SPLITS.items()}
        if split == "all":
            data = datasets.concatenate_datasets(list(data.values()))
        elif parts[split] is not None:
            data = parts[split]
        else:
            raise ValueError(f"{name} has the splits {', '.join(data)}, but no {split}.")
    if len(data) == 0:
        raise ValueError(f"{name} has no rows.")
    image, label = _columns(name, data.column_names, image, labels)
    names = None
    if label is not None:
        names = getattr(data.features[label], "names", None)
        labels, names = _numbered(list(data.with_format(None)[label]), names, f"Column {label} of {name}")
    rows: Rows
    found: tuple[float, float] | None
    if isinstance(data.features[image], datasets.Image):
        encoded = data.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format(None)
        rows = picture_rows(HuggingFacePictures(name, encoded, image), size, channels, picture_range)
        found = picture_range
    else:
        values = list(data.with_format("numpy")[image])
        rows, found = _decoded_rows(values, name, image, data_range, data.features[image])
    return Dataset(rows, None if labels is False else labels, data_range=found, name=name, class_names=names)


def load_hub(name: str) -> Any:
    """The ``datasets.Dataset`` of ``NAME`` or ``NAME:CONFIGURATION`` on the Hugging Face hub, or from its local cache."""
    try:
        import datasets
    except ImportError:
        raise _missing("datasets") from None
    repository, _, configuration = name.partition(":")
    try:
        data = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # the hub raises errors of many libraries; the user needs one sentence
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"The dataset {name!r} could not be loaded from the Hugging Face hub: {reason}") from None
    return data


def load_disk(folder: Path) -> Any:
    """What ``save_to_disk`` of the library `datasets` wrote."""
    try:
        import datasets
    except ImportError:
        raise _missing("datasets") from None
    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is no complete Hugging Face dataset ({str(error).splitlines()[0]}).") from None
