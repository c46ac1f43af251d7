"""The space that samples are compared in: raw values, a bundled classifier, a TorchScript network, Inception, any callable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from trueward import processes
from trueward.data import Dataset
from trueward.data.dataset import check_labels
from trueward.metrics.classifier import BUNDLED, Classifier, load_classifier
from trueward.metrics.estimate import Estimate, share
from trueward.naming import check_name

Samples: TypeAlias = "Tensor | np.ndarray | Dataset"
FeatureSpec: TypeAlias = "str | Path | Classifier | Features | Callable[[Tensor], Tensor] | None"


def batches(samples: Samples, batch_size: int, start: int = 0, stride: int = 1) -> Iterator[Tensor]:
    """The samples in order, at most `batch_size` at a time; of these batches every `stride`-th from number `start`."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    for first in range(start * batch_size, len(samples), stride * batch_size):
        rows = slice(first, min(first + batch_size, len(samples)))
        yield samples.batch(rows)["x"] if isinstance(samples, Dataset) else torch.as_tensor(samples[rows])


class Features:
    """A named map from samples (n, *shape) to features (n, d).

    Args:
        name: identifies the map: statistics of differently named features are never compared.
        function: (batch, *shape) -> (batch, d); None flattens.
        data_range: what range of values `function` expects, None if it takes them as they are.
        device: where `function` runs; None: where the samples are.
        classifier: the classifier behind the features, if there is one.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Tensor], Tensor] | None = None,
        *,
        data_range: tuple[float, float] | None = None,
        device: torch.device | str | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.data_range = data_range
        self.device = device
        self.classifier = classifier

    def to_own_range(self, x: Tensor, data_range: tuple[float, float] | None) -> Tensor:
        """Values moved from `data_range` to the range the map expects; unchanged where either is None."""
        if self.data_range is None or data_range is None or tuple(data_range) == self.data_range:
            return x
        (low, high), (a, b) = data_range, self.data_range
        return a + (b - a) * (x - low) / (high - low)

    @torch.no_grad()
    def __call__(self, x: Tensor, data_range: tuple[float, float] | None = None) -> Tensor:
        """Features (batch, d) of `x` (batch, *shape); values are moved from `data_range` to the range the map expects.

        Raises:
            ValueError: samples or features with NaN or infinity, or features that are not (batch, d).
        """
        x = torch.as_tensor(x)
        if not x.is_floating_point():
            x = x.to(torch.float32)
        if not torch.isfinite(x).all():
            row = (~torch.isfinite(x)).flatten(1).any(1).nonzero()[0].item()
            raise ValueError(f"Samples must be finite, but sample {row} holds NaN or infinity.")
        if self.function is None:
            return x.flatten(1)
        x = self.to_own_range(x, data_range)
        found = self.function(x if self.device is None else x.to(self.device))
        if not isinstance(found, Tensor) or found.ndim < 2 or found.shape[0] != x.shape[0]:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"Features {self.name!r} must give a tensor ({x.shape[0]}, d), got {what}.")
        found = found.flatten(1)
        if not torch.isfinite(found).all():
            raise ValueError(f"Features {self.name!r} gave NaN or infinity.")
        return found

    def extract(
        self, samples: Samples, *, batch_size: int = 500, data_range: tuple[float, float] | None = None
    ) -> Tensor:
        """Features (n, d) of all samples, float64, in batches.

        Args:
            samples: (n, *shape) tensor or array, or a dataset, whose own range is used.
            batch_size: samples at a time.
            data_range: range of the samples' values; a dataset knows its own.
        """
        if len(samples) == 0:
            raise ValueError("There are no samples.")
        known = samples.data_range if isinstance(samples, Dataset) else data_range
        return torch.cat([_double(self(part, known)) for part in batches(samples, batch_size)])

    def extract_together(
        self, samples: Samples, *, batch_size: int = 500, data_range: tuple[float, float] | None = None
    ) -> Tensor:
        """:meth:`extract`, with the batches shared by the processes of the group; all call it with the same samples."""
        if len(samples) == 0:
            raise ValueError("There are no samples.")
        known = samples.data_range if isinstance(samples, Dataset) else data_range
        return _double(map_together(lambda part: self(part, known), samples, batch_size))


def map_together(function: Callable[[Tensor], Tensor], samples: Samples, batch_size: int) -> Tensor:
    """``function`` of every batch, in order and on the CPU, where process r of w has computed the batches r, r + w, ...

    A batch is the same for any number of processes, and so is what it gives.
    """
    rank, world = processes.here()
    with processes.all_or_none():
        mine = [function(part).cpu() for part in batches(samples, batch_size, rank, world)]
    gathered = processes.gather_rows(torch.cat(mine) if mine else None)
    found = torch.empty(len(samples), *gathered[0].shape[1:], dtype=gathered[0].dtype)
    taken = [0] * world
    for number, first in enumerate(range(0, len(samples), batch_size)):
        rows, owner = min(batch_size, len(samples) - first), number % world
        found[first : first + rows] = gathered[owner][taken[owner] : taken[owner] + rows]
        taken[owner] += rows
    return found


def _double(x: Tensor) -> Tensor:
    return x.cpu().double() if x.device.type == "mps" else x.double()


def feature_extractor(features: FeatureSpec = None, device: torch.device | str | None = None) -> Features:
    """Features by their description.

    Args:
        features: one of

            * None: the values themselves, flattened;
            * ``"digits"``, ``"mnist"``: the penultimate layer of a bundled classifier;
            * ``"inception:PATH"``: the TorchScript file ``inception-2015-12-05.pt`` that the user supplies (2048 features of
              the network that FID is defined with; takes RGB images);
            * the path of a TorchScript file that maps (n, *shape) to (n, d);
            * a :class:`Classifier`, or any callable (n, *shape) -> (n, d).
        device: where the network runs; None: where the samples are.

    Raises:
        ValueError: an unknown name, a file that is missing or not TorchScript.
    """
    if features is None:
        return Features("values")
    if isinstance(features, Features):
        return features
    if isinstance(features, Classifier):
        return _of_classifier(f"classifier {_hash_module(features)}", features, device)
    if isinstance(features, str | Path):
        text = str(features)
        if text in BUNDLED:
            return _of_classifier(text, load_classifier(text), device)
        if text.partition(":")[0] == "inception":
            return _inception(text.partition(":")[2], device)
        if not Path(text).is_file():
            if not Path(text).suffix and Path(text).parent == Path("."):
                check_name("features", text, [*BUNDLED, "inception:PATH", "the path of a TorchScript file"])
            raise ValueError(f"The features file {text!r} does not exist.")
        network = _torchscript(Path(text), device)
        return Features(f"{Path(text).name} {_hash_file(Path(text))}", network, device=device)
    if callable(features):
        return Features(getattr(features, "__qualname__", type(features).__name__), features, device=device)
    raise ValueError(f"features must be None, a name, a path or a callable, got {type(features).__name__}.")


def _of_classifier(name: str, classifier: Classifier, device: torch.device | str | None) -> Features:
    if device is not None:
        classifier.to(device)
    return Features(name, classifier.features, data_range=classifier.data_range, device=device, classifier=classifier)


def _torchscript(path: Path, device: torch.device | str | None) -> Any:
    try:
        return torch.jit.load(str(path), map_location=device or "cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a TorchScript file ({str(error).splitlines()[0]}).") from None


def _inception(path: str, device: torch.device | str | None) -> Features:
    if not path:
        raise ValueError(
            "Inception weights are not bundled: give their TorchScript file as features='inception:PATH/inception-2015-12-05.pt'."
        )
    if not Path(path).is_file():
        raise ValueError(f"The Inception file {path!r} does not exist.")
    network = _torchscript(Path(path), device)

    def activations(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"Inception takes images with 1 or 3 channels, got shape {tuple(x.shape)}.")
        pixels = x.round().clamp(0, 255).to(torch.uint8)  # FID is defined on stored pictures
        return network(pixels.expand(-1, 3, -1, -1), return_features=True)

    return Features(f"inception {_hash_file(Path(path))}", activations, data_range=(0.0, 255.0), device=device)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _hash_module(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def default_features(data: Dataset) -> str | None:
    """The bundled classifier that was trained on these data, else None (the values themselves)."""
    if data.name in BUNDLED and data.shape == load_classifier(data.name).shape:
        return data.name
    return None


def class_accuracy(
    samples: Samples,
    labels: Tensor | Sequence[int],
    features: FeatureSpec,
    *,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
    together: bool = False,
) -> Estimate:
    """The share of samples that a classifier takes for the class that was asked for, with its standard error.

    Args:
        samples: (n, *shape) tensor or array, or a dataset.
        labels: (n,) classes that were asked for.
        features: ``"digits"``, ``"mnist"``, or a :class:`Classifier`.
        batch_size: samples at a time.
        data_range: of the samples' values; a dataset knows its own.
        together: with the work shared by the processes of the group, all of which call this.

    Raises:
        ValueError: features without a classifier; labels of another length or beyond its classes.
    """
    extractor = feature_extractor(features)
    classifier = extractor.classifier
    if classifier is None:
        raise ValueError(f"The features {extractor.name!r} have no classifier; bundled ones are {', '.join(BUNDLED)}.")
    wanted, _ = check_labels(torch.as_tensor(labels), len(samples), classifier.num_classes)
    assert wanted is not None
    known = samples.data_range if isinstance(samples, Dataset) else data_range

    def classify(part: Tensor) -> Tensor:
        return classifier.classify(extractor.to_own_range(part, known))

    if together:
        return share(map_together(classify, samples, batch_size) == wanted)
    return share(torch.cat([classify(part) for part in batches(samples, batch_size)]) == wanted)


def feature_pair(
    samples: Samples,
    reference: Samples,
    features: FeatureSpec,
    *,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
    least: int = 2,
    together: bool = False,
) -> tuple[Tensor, Tensor]:
    """Features (n, d), (m, d) float64 of two sets on one device, checked: enough samples, one shape, one size of features.

    With `together` the processes of the group share the work and all get both sets, on the CPU.
    """
    for name, x in (("samples", samples), ("reference", reference)):
        if not isinstance(x, Tensor | np.ndarray | Dataset):
            raise ValueError(f"{name} must be a tensor, an array or a dataset, got {type(x).__name__}.")
        if len(x) < least:
            raise ValueError(f"{name} must be at least {least}, got {len(x)}.")
    a, b = tuple(samples.shape), tuple(reference.shape)
    a = a if isinstance(samples, Dataset) else a[1:]
    b = b if isinstance(reference, Dataset) else b[1:]
    if a != b:
        raise ValueError(f"samples of shape {a} cannot be compared with a reference of shape {b}.")
    if a == ():
        raise ValueError(
            "samples must have shape (n, *shape) with at least two axes, got one; use x[:, None] for numbers."
        )
    extractor = feature_extractor(features)
    if isinstance(reference, Dataset) and data_range is None:
        data_range = reference.data_range
    extract = extractor.extract_together if together else extractor.extract
    x = extract(samples, batch_size=batch_size, data_range=data_range)
    y = extract(reference, batch_size=batch_size, data_range=data_range)
    return x, y.to(x.device)
