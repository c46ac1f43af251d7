"""Measures many sets of samples against one reference whose features and statistics are computed once.

The Frechet distance uses the whole reference. Metrics that look at neighbours or kernels take as many points of the
reference as there are samples (at most `most`, evenly spread), because their values compare at equal sizes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trueward.data import Dataset
from trueward.metrics.features import FeatureSpec, feature_extractor
from trueward.metrics.frechet import FrechetStatistics, frechet_distance
from trueward.metrics.manifolds import density_coverage, precision_recall
from trueward.metrics.mmd import median_bandwidth, mmd
from trueward.metrics.sliced import sliced_wasserstein
from trueward.metrics.two_sample import c2st
from trueward.naming import look_up
from trueward.reports.comparison import Quality

_SHARE = (0.0, 1.0)
QUALITIES: dict[str, tuple[Quality, ...]] = {
    "frechet": (Quality("frechet", "Fréchet distance", "lower"),),
    "precision_recall": (
        Quality("precision", "precision", "higher", _SHARE),
        Quality("recall", "recall", "higher", _SHARE),
    ),
    "density_coverage": (Quality("density", "density", "higher"), Quality("coverage", "coverage", "higher", _SHARE)),
    "mmd": (Quality("mmd", "squared MMD", "lower"),),
    "sliced_wasserstein": (Quality("sliced_wasserstein", "sliced Wasserstein distance", "lower"),),
    "c2st": (Quality("c2st", "classifier two-sample accuracy", "lower", _SHARE),),
}
DEFAULT = ("frechet", "precision_recall")


class Judge:
    """``judge(samples) -> {metric: value}`` for one reference.

    Args:
        reference: (m, *shape) tensor in data units, or a dataset.
        metrics: frechet, precision_recall, density_coverage, mmd, sliced_wasserstein, c2st; the first decides who is best.
            Default: frechet, precision_recall.
        features: see :func:`trueward.metrics.features.feature_extractor`; None or "pixels" for the values themselves.
        data_range: of samples and reference; a dataset knows its own.
        device: where features are computed; default: where the samples are.
        most: points of the reference for metrics of neighbours and kernels.
        together: let the processes of the group share the features of the reference; all of them make this judge.

    Raises:
        ValueError: unknown metric or features; fewer than two samples.
    """

    def __init__(
        self,
        reference: Tensor | Dataset,
        metrics: Sequence[str] | None = None,
        features: FeatureSpec = None,
        data_range: tuple[float, float] | None = None,
        device: torch.device | str | None = None,
        most: int = 10000,
        together: bool = False,
    ) -> None:
        self.metrics = DEFAULT if metrics is None else tuple(dict.fromkeys(metrics))
        if not self.metrics:
            raise ValueError("Name at least one metric.")
        self.qualities = [quality for name in self.metrics for quality in look_up("metric", name, QUALITIES)]
        self.data_range = reference.data_range if isinstance(reference, Dataset) else data_range
        self.extractor = feature_extractor(None if features == "pixels" else features, device)
        extract = self.extractor.extract_together if together else self.extractor.extract
        self.reference = extract(reference, data_range=self.data_range).cpu()
        self.statistics = FrechetStatistics(self.extractor.name).update(self.reference)
        self.most = most
        self._bandwidth: float | None = None

    def identity(self) -> dict[str, Any]:
        """What the values depend on besides the samples, JSON-able."""
        moments = [float(self.statistics.mean.sum()), float(self.statistics.scatter.trace())]
        return {
            "metrics": list(self.metrics),
            "features": self.extractor.name,
            "n": len(self.reference),
            "moments": moments,
            "most": self.most,
        }

    def about(self) -> dict[str, Any]:
        """What a report says about the measurement."""
        name = "values themselves" if self.extractor.function is None else self.extractor.name
        if self.extractor.name in ("digits", "mnist"):
            name = f"last hidden layer of the bundled {self.extractor.name} classifier"
        return {"features": f"{name} ({self.reference.shape[1]} dimensions)"}

    def _features(self, x: Tensor | Dataset) -> Tensor:
        return self.extractor.extract(x, data_range=self.data_range).cpu()

    def _points(self, n: int) -> Tensor:
        """As many points of the reference as there are samples, evenly spread over it."""
        count = min(n, len(self.reference), self.most)
        return self.reference[torch.linspace(0, len(self.reference) - 1, count, dtype=torch.float64).long()]

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """The value of every metric for samples (n, *shape) in data units."""
        x = self._features(samples)
        few = x[: self.most]
        found: dict[str, float] = {}
        for name in self.metrics:
            found |= _MEASURES[name](self, x, few)
        return found

    def _frechet(self, x: Tensor, few: Tensor) -> dict[str, float]:
        return {"frechet": frechet_distance(FrechetStatistics(self.extractor.name).update(x), self.statistics)}

    def _precision_recall(self, x: Tensor, few: Tensor) -> dict[str, float]:
        precision, recall = precision_recall(few, self._points(len(few)))
        return {"precision": precision.value, "recall": recall.value}

    def _density_coverage(self, x: Tensor, few: Tensor) -> dict[str, float]:
        density, coverage = density_coverage(few, self._points(len(few)))
        return {"density": density.value, "coverage": coverage.value}

    def _mmd(self, x: Tensor, few: Tensor) -> dict[str, float]:
        if self._bandwidth is None:  # from the reference alone, so that all samples are seen through one kernel
            self._bandwidth = median_bandwidth(self.reference[::2], self.reference[1::2])
        return {"mmd": mmd(few, self._points(len(few)), self._bandwidth).value}

    def _sliced(self, x: Tensor, few: Tensor) -> dict[str, float]:
        return {"sliced_wasserstein": sliced_wasserstein(few, self._points(len(few)))}

    def _c2st(self, x: Tensor, few: Tensor) -> dict[str, float]:
        return {"c2st": c2st(few, self._points(len(few))).value}


_MEASURES: dict[str, Callable[[Judge, Tensor, Tensor], dict[str, float]]] = {
    "frechet": Judge._frechet,
    "precision_recall": Judge._precision_recall,
    "density_coverage": Judge._density_coverage,
    "mmd": Judge._mmd,
    "sliced_wasserstein": Judge._sliced,
    "c2st": Judge._c2st,
}
