"""The classifier two-sample test: if no classifier tells samples from the reference, they are from one distribution.

The accuracy is cross-validated; 1/2 is what equal distributions give, 1 is complete separation. The classifier of a fold has not
seen the points it is tested on, so under equality its hits are at most as spread as Binomial(n_k, 1/2), and

    p = min(1, K min_k P(Binomial(n_k, 1/2) >= hits_k))

is a valid p-value (Bonferroni) although the K classifiers share their training data. The pooled hits of all folds are not
binomial: a test at 5 % that takes them so rejects equal distributions 10 % of the time.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trueward.metrics.estimate import Estimate
from trueward.metrics.features import FeatureSpec, Samples, feature_pair
from trueward.naming import check_name

citation = ("lopezpaz2017revisiting",)

CLASSIFIERS = ("mlp", "logistic", "knn")


@dataclass(frozen=True)
class C2ST(Estimate):
    """Cross-validated accuracy with its standard error, and the `p_value` of equality."""

    p_value: float = math.nan

    @property
    def accuracy(self) -> float:
        """The value."""
        return self.value

    def to_dict(self) -> dict[str, float | None]:
        return {**super().to_dict(), "p_value": self.p_value}


def _classifier(kind: Any, n: int, seed: int) -> Any:
    if not isinstance(kind, str):
        if not (hasattr(kind, "fit") and hasattr(kind, "predict")):
            raise ValueError(f"classifier must be a name or have fit and predict, got {type(kind).__name__}.")
        return kind
    check_name("classifier", kind, CLASSIFIERS)
    if kind == "mlp":
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier((64, 64), early_stopping=n >= 400, max_iter=200, random_state=seed)
    if kind == "logistic":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=1000)
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(max(1, math.isqrt(n)))


def c2st(
    samples: Samples,
    reference: Samples,
    classifier: Any = "mlp",
    features: FeatureSpec = None,
    *,
    folds: int = 5,
    limit: int | None = 5000,
    seed: int = 0,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
) -> C2ST:
    """How well a classifier tells samples from the reference.

    Args:
        samples, reference: (n, *shape), (m, *shape) tensor, array or dataset; the larger set is thinned to the size of the
            other, at random.
        classifier: "mlp", "logistic", "knn", or a scikit-learn classifier; features are standardised for it.
        features: see :func:`trueward.metrics.feature_extractor`.
        folds: K, parts of the cross-validation.
        limit: at most so many points of each set, drawn at random; None: all.
        seed: of the draw, the folds and the classifier.
        batch_size: samples whose features are computed at once.
        data_range: of the samples' values; a dataset knows its own.

    Returns:
        accuracy; its standard error, with Nadeau and Bengio's term for the training data that folds share (it errs on the large
        side); the p-value.

    Raises:
        ValueError: folds < 2, fewer than 2 `folds` points in a set, NaN, shapes that differ, an unknown classifier.

    Reference: Lopez-Paz and Oquab 2017, section 3; Nadeau and Bengio 2003.
    """
    from scipy.stats import binom
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}.")
    x, y = feature_pair(
        samples, reference, features, batch_size=batch_size, data_range=data_range, least=max(2 * folds, 10)
    )
    size = min(len(x), len(y), len(x) if limit is None else limit)
    if size < 2 * folds:
        raise ValueError(f"limit must be at least {2 * folds} for {folds} folds, got {limit}.")
    generator = torch.Generator().manual_seed(seed)
    parts = [z.cpu()[torch.randperm(len(z), generator=generator)[:size]].numpy() for z in (x, y)]
    points, truth = np.concatenate(parts), np.repeat([0, 1], size)
    model = make_pipeline(StandardScaler(), _classifier(classifier, 2 * size, seed))
    hits, counts = [], []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(points, truth):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # a classifier stopped early is a weaker one, not a wrong one
            fitted = clone(model).fit(points[train], truth[train])
        hits.append(int((fitted.predict(points[test]) == truth[test]).sum()))
        counts.append(len(test))
    accuracy = sum(hits) / sum(counts)
    # at 0 and 1 the spread is that of one point more, not 0
    spread = min(max(accuracy, 1.0 / (2 * size + 1)), 2 * size / (2 * size + 1.0))
    error = math.sqrt((1.0 / folds + 1.0 / (folds - 1)) * spread * (1.0 - spread) * folds / (2 * size))
    smallest = min(float(binom.sf(h - 1, n, 0.5)) for h, n in zip(hits, counts))
    return C2ST(accuracy, error, min(1.0, folds * smallest))
