"""Several metrics of the same samples at once, as numbers that JSON holds: what the command line and reports print."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trueward.data import Dataset
from trueward.metrics.estimate import Estimate
from trueward.metrics.features import FeatureSpec, Samples, class_accuracy, feature_extractor, feature_pair
from trueward.metrics.frechet import MOST_DIMENSIONS, frechet_distance, frechet_infinity, frechet_with_error
from trueward.metrics.manifolds import density_coverage, precision_recall
from trueward.metrics.mmd import mmd
from trueward.metrics.sliced import sliced_wasserstein, sliced_with_error
from trueward.metrics.two_sample import c2st
from trueward.naming import check_name

METRICS = ("frechet", "frechet_infinity", "precision_recall", "density_coverage", "mmd", "sliced_wasserstein", "c2st")
DEFAULT = ("frechet", "precision_recall", "density_coverage", "mmd", "sliced_wasserstein")
_GROUPS = 20


def _frechet(x: Tensor, y: Tensor, groups: int = _GROUPS, seed: int = 0) -> Estimate:
    if min(len(x), len(y)) < 2 * groups or x.shape[1] > MOST_DIMENSIONS:
        return Estimate(frechet_distance(x, y))
    return frechet_with_error(x, y, groups=groups, seed=seed)


def _sliced(x: Tensor, y: Tensor, projections: int = 256, p: float = 2.0, seed: int = 0) -> Estimate:
    if min(len(x), len(y)) < 2 * _GROUPS:
        return Estimate(sliced_wasserstein(x, y, projections, p=p, seed=seed))
    return sliced_with_error(x, y, projections, p=p, groups=_GROUPS, seed=seed)


_COMPUTE: dict[str, Callable[..., Any]] = {
    "frechet": _frechet,
    "frechet_infinity": frechet_infinity,
    "precision_recall": precision_recall,
    "density_coverage": density_coverage,
    "mmd": mmd,
    "sliced_wasserstein": _sliced,
    "c2st": c2st,
}
_FIXED = {"samples", "reference", "x", "y", "features", "batch_size", "data_range"}


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    known = [option for option in inspect.signature(_COMPUTE[name]).parameters if option not in _FIXED]
    for option in options:
        check_name(f"option of the metric {name!r}", option, known)


def evaluate(
    samples: Samples,
    reference: Samples,
    metrics: Sequence[str] = DEFAULT,
    features: FeatureSpec = None,
    *,
    labels: Tensor | Sequence[int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Measures how far `samples` are from `reference`.

    Args:
        samples: (n, *shape) tensor or array, or a dataset.
        reference: the truth to measure against, likewise.
        metrics: names among frechet, frechet_infinity, precision_recall, density_coverage, mmd, sliced_wasserstein, c2st.
        features: see :func:`trueward.metrics.feature_extractor`; computed once for all metrics.
        labels: (n,) the classes that were asked for; with features of a classifier adds ``class_accuracy``, the share of samples
            that the classifier takes for their class. A dataset brings its own.
        options: of single metrics, e.g. ``{"mmd": {"bandwidth": 8.0}, "precision_recall": {"k": 5}}``.
        batch_size: samples whose features are computed at once.
        data_range: of the samples' values; a dataset knows its own, and the reference's is used where samples have none.
        device: where features are computed.

    Returns:
        ``{"samples": n, "reference": m, "features": name, "dimensions": d, "metrics": {name: {"value", "standard_error", ...}},
        "seconds": {...}}``. Standard errors that would need too few samples or too many computations are None.

    Raises:
        ValueError: an unknown metric or option, too few samples, NaN, shapes that differ.
    """
    if isinstance(metrics, str):
        metrics = [metrics]
    for name in metrics:
        check_name("metric", name, METRICS)
    for name in options or {}:
        check_name("metric with options", name, metrics)
        _check_options(name, (options or {})[name])
    extractor = feature_extractor(features, device)
    if data_range is None and isinstance(reference, Dataset):
        data_range = reference.data_range
    began = time.perf_counter()
    x, y = feature_pair(samples, reference, extractor, batch_size=batch_size, data_range=data_range)
    seconds = {"features": time.perf_counter() - began}
    results: dict[str, Estimate] = {}
    for name in metrics:
        began = time.perf_counter()
        found = _COMPUTE[name](x, y, **(options or {}).get(name, {}))
        results.update({name: found} if isinstance(found, Estimate) else found._asdict())
        seconds[name] = time.perf_counter() - began
    if labels is None and isinstance(samples, Dataset):
        labels = samples.labels
    if labels is not None and extractor.classifier is not None:
        results["class_accuracy"] = class_accuracy(
            samples, labels, extractor, batch_size=batch_size, data_range=data_range
        )
    return {
        "samples": len(x),
        "reference": len(y),
        "features": extractor.name,
        "dimensions": x.shape[1],
        "metrics": {name: found.to_dict() for name, found in results.items()},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
