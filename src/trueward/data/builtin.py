"""Data sets known by name: the handwritten digits that scikit-learn carries, and MNIST from a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from trueward.data.arrays import IMAGE_RANGE, load_numpy
from trueward.data.dataset import Dataset
from trueward.data.rows import Quantised

DIGITS_TRAIN = 1500
_TEN = [str(c) for c in range(10)]


def _range(data_range: tuple[float, float] | str | None) -> tuple[float, float]:
    if data_range is None:
        raise ValueError("Images are mapped to data_range, so it cannot be None.")
    return IMAGE_RANGE if isinstance(data_range, str) else (float(data_range[0]), float(data_range[1]))


def digits(split: str, data_range: tuple[float, float] | str | None = "auto") -> Dataset:
    """Optical recognition of handwritten digits, 1797 real images 1x8x8 with 17 grey levels (Alpaydin and Kaynak 1998).

    The test split is 297 images drawn once and for all, the training split the other 1500.
    """
    from sklearn.datasets import load_digits

    stored = load_digits()
    order = np.random.RandomState(0).permutation(len(stored.target))  # frozen by NumPy's compatibility policy
    parts = {"train": np.sort(order[:DIGITS_TRAIN]), "test": np.sort(order[DIGITS_TRAIN:]), "all": np.sort(order)}
    codes = torch.as_tensor(stored.images[parts[split]].astype(np.uint8)).unsqueeze(1)
    found = _range(data_range)
    return Dataset(
        Quantised(codes, 17, found),
        stored.target[parts[split]],
        data_range=found,
        num_classes=10,
        name="digits",
        class_names=_TEN,
    )


def mnist_places() -> list[Path]:
    """Where ``mnist.npz`` is looked for: $TRUEWARD_DATA, ``../shared/data`` from the project or the working directory, ~/.cache/trueward."""
    places = []
    if os.environ.get("TRUEWARD_DATA"):
        places.append(Path(os.environ["TRUEWARD_DATA"]))
    places.append(Path.cwd().parent / "shared" / "data")
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file():
        places.append(checkout.parent / "shared" / "data")
    places.append(Path.home() / ".cache" / "trueward")
    return [place if place.suffix == ".npz" else place / "mnist.npz" for place in dict.fromkeys(places)]


def mnist(split: str, data_range: tuple[float, float] | str | None = "auto") -> Dataset:
    """MNIST, 60000 + 10000 images 1x28x28 with 256 grey levels (LeCun et al. 1998).

    Raises:
        ValueError: if ``mnist.npz`` is in none of :func:`mnist_places`.
    """
    places = mnist_places()
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = ", ".join(str(place) for place in places)
        raise ValueError(
            f"mnist.npz (arrays x_train, y_train, x_test, y_test) was not found; looked at {looked}; set TRUEWARD_DATA to its folder."
        )
    x, labels = load_numpy(path, split, None, None)
    found = _range(data_range)
    return Dataset(
        Quantised(torch.as_tensor(x).unsqueeze(1), 256, found),
        labels,
        data_range=found,
        num_classes=10,
        name="mnist",
        class_names=_TEN,
    )
