"""Several metrics of the same samples at once, as numbers that JSON holds: what the command line and reports print."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trueward import processes
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
# Metrics that are two numbers.
_KEYS = {"precision_recall": ("precision", "recall"), "density_coverage": ("density", "coverage")}
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
    together: bool = False,
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
        together: share the work with the other processes of the joined group (:mod:`trueward.processes`): the batches whose
            features are computed, then the metrics. All of them call this with the same arguments and get the same numbers,
            which are those of one process.

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
    x, y = feature_pair(samples, reference, extractor, batch_size=batch_size, data_range=data_range, together=together)
    seconds = {"features": time.perf_counter() - began}
    rank, world = processes.here() if together else (0, 1)
    results: dict[str, dict[str, float | None]] = {}
    with processes.all_or_none() if together else contextlib.nullcontext():
        for name in metrics[rank::world]:
            began = time.perf_counter()
            found = _COMPUTE[name](x, y, **(options or {}).get(name, {}))
            estimates = {name: found} if isinstance(found, Estimate) else found._asdict()
            results.update({key: estimate.to_dict() for key, estimate in estimates.items()})
            seconds[name] = time.perf_counter() - began
    if world > 1:
        results, seconds = _of_all(metrics, results, seconds)
    if labels is None and isinstance(samples, Dataset):
        labels = samples.labels
    if labels is not None and extractor.classifier is not None:
        results["class_accuracy"] = class_accuracy(
            samples, labels, extractor, batch_size=batch_size, data_range=data_range, together=together
        ).to_dict()
    return {
        "samples": len(x),
        "reference": len(y),
        "features": extractor.name,
        "dimensions": x.shape[1],
        "metrics": results,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _of_all(
    metrics: Sequence[str], results: dict[str, dict[str, float | None]], seconds: dict[str, float]
) -> tuple[dict[str, dict[str, float | None]], dict[str, float]]:
    """What all processes measured, in the order of one."""
    parts = processes.gather_json([results, seconds])
    by_rank = [(list(found.items()), times) for found, times in parts]
    ordered: dict[str, dict[str, float | None]] = {}
    times = {"features": max(took["features"] for _, took in by_rank)}
    for number, name in enumerate(metrics):
        found, took = by_rank[number % len(by_rank)]
        for key, value in found:
            if key in _KEYS.get(name, (name,)):
                ordered[key] = value
        times[name] = took[name]
    return ordered, times
