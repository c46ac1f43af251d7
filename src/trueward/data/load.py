"""Any data as a :class:`Dataset`: a name, a file, a folder, an array, a Hugging Face dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trueward.data.arrays import from_array, load_numpy
from trueward.data.builtin import digits, mnist
from trueward.data.dataset import Dataset
from trueward.naming import check_name

_NAMES = {"digits": digits, "mnist": mnist}


def load_data(
    spec: Any,
    *,
    split: str = "train",
    size: int | None = None,
    labels: Any = None,
    data_range: tuple[float, float] | str | None = "auto",
    limit: int | None = None,
    **options: Any,
) -> Dataset:
    check_name("split", split, ("train", "test", "all"))
    if isinstance(spec, Dataset):
        found = spec
    elif isinstance(spec, str) and spec in _NAMES:
        found = _NAMES[spec](split, data_range)
    elif isinstance(spec, np.ndarray | Tensor):
        found = from_array(spec, labels, data_range=data_range)
    elif isinstance(spec, tuple) and len(spec) == 2:
        found = from_array(spec[0], spec[1] if labels is None else labels, data_range=data_range)
    else:
        x, y = load_numpy(Path(spec), split, None, None)
        found = from_array(x, y, data_range=data_range)
    return found if limit is None else found.subset(slice(0, limit))
