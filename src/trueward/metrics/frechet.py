r"""The Frechet distance between Gaussians fitted to features (FID when the features are Inception's)

.. math:: d^2 = \lVert m_1 - m_2 \rVert^2 + \mathrm{tr}\, C_1 + \mathrm{tr}\, C_2 - 2\, \mathrm{tr}\, (C_1 C_2)^{1/2}.

The trace of the root is computed as the sum of the singular values of ``C_1^(1/2) C_2^(1/2)``: real by construction, exact for
covariances without full rank, where a general matrix square root turns complex or loses half its digits.

With fewer samples the distance is larger: E d^2 = d^2_infinity + b / n. :func:`frechet_infinity` extrapolates to 1/n = 0.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from trueward.metrics.estimate import Estimate, jackknife_variance, random_groups
from trueward.metrics.features import Features, FeatureSpec, Samples, feature_extractor, feature_pair
from trueward.metrics.statistics import FrechetStatistics

citation = ("heusel2017gans", "dowson1982frechet")

MOST_DIMENSIONS = 512  # above, the 2 G + 1 distances of a jackknife take minutes


Statistics: TypeAlias = "Samples | FrechetStatistics"


def _root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric root of a covariance; eigenvalues that rounding made negative are zero."""
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.T))
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def frechet_of_moments(
    mean_1: Float[Tensor, " d"],
    covariance_1: Float[Tensor, "d d"],
    mean_2: Float[Tensor, " d"],
    covariance_2: Float[Tensor, "d d"],
) -> float:
    """The squared 2-Wasserstein distance between N(mean_1, covariance_1) and N(mean_2, covariance_2).

    Reference: Dowson and Landau 1982.
    """
    mean_1, covariance_1, mean_2, covariance_2 = (
        m.cpu().double() for m in (mean_1, covariance_1, mean_2, covariance_2)
    )
    if mean_1.shape != mean_2.shape:
        raise ValueError(f"Features of {len(mean_1)} and {len(mean_2)} dimensions cannot be compared.")
    cross = torch.linalg.svdvals(_root(covariance_1) @ _root(covariance_2)).sum()
    gap = ((mean_1 - mean_2) ** 2).sum()
    return max(0.0, float(gap + covariance_1.trace() + covariance_2.trace() - 2.0 * cross))


def _statistics(given: Statistics, features: FeatureSpec, **options: Any) -> FrechetStatistics:
    return given if isinstance(given, FrechetStatistics) else FrechetStatistics.of(given, features, **options)


def frechet_distance(
    samples: Statistics,
    reference: Statistics,
    features: FeatureSpec = None,
    *,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
) -> float:
    """The squared Frechet distance between Gaussians fitted to the features of two sets.

    Args:
        samples, reference: (n, *shape) tensor or array, a dataset, or :class:`FrechetStatistics`.
        features: see :func:`trueward.metrics.feature_extractor`; None compares the values themselves.
        batch_size: samples whose features are computed at once.
        data_range: range of the samples' values, for features that expect images; a dataset knows its own.

    Returns:
        d^2 >= 0. It falls with the number of samples: compare only distances of the same n.

    Raises:
        ValueError: fewer than two samples, NaN, features of different maps or sizes.

    Reference: Heusel et al. 2017.
    """
    if data_range is None:
        data_range = getattr(reference, "data_range", None)
    # the extractor is built once: a bundled network is not read twice
    extractor = feature_extractor(features) if not isinstance(features, Features) else features
    first = _statistics(samples, extractor, batch_size=batch_size, data_range=data_range)
    second = _statistics(reference, extractor, batch_size=batch_size, data_range=data_range)
    if first.features != second.features:
        raise ValueError(f"Statistics of features {first.features!r} and {second.features!r} cannot be compared.")
    return frechet_of_moments(first.mean, first.covariance, second.mean, second.covariance)


def frechet_with_error(
    samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], *, groups: int = 20, seed: int = 0
) -> Estimate:
    """The Frechet distance of two sets of features with its grouped-jackknife standard error.

    Like :func:`trueward.metrics.interval`, but the statistics of each group are gathered once and merged.
    """
    sides = []
    for side, features in enumerate((samples, reference)):
        sides.append(
            [FrechetStatistics().update(features[g]) for g in random_groups(len(features), groups, seed + side)]
        )

    def merged(parts: list[FrechetStatistics], without: int | None = None) -> FrechetStatistics:
        total = FrechetStatistics()
        for i, part in enumerate(parts):
            if i != without:
                total.merge(part)
        return total

    whole = [merged(parts) for parts in sides]
    variance = sum(
        jackknife_variance([frechet_distance(merged(parts, g), whole[1 - side]) for g in range(groups)])
        for side, parts in enumerate(sides)
    )
    return Estimate(frechet_distance(whole[0], whole[1]), math.sqrt(variance))


def frechet_infinity(
    samples: Samples,
    reference: Samples,
    features: FeatureSpec = None,
    *,
    points: int = 15,
    smallest: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
) -> Estimate:
    """The Frechet distance that infinitely many samples would have: a line in 1/n, read at 0.

    Random subsets of `points` sizes between `smallest` and n are measured against the whole reference, whose own finite size
    is not corrected (as in the paper).

    Args:
        samples, reference, features, batch_size, data_range: as in :func:`frechet_distance`.
        points: number of sizes, at least 3.
        smallest: the smallest size; default n / 10, at least twice the number of features (below it the line bends).
        seed: of the subsets.

    Returns:
        the extrapolated distance (it may be slightly negative). Its standard error adds that of the fit and the jackknife's of
        the distance at n, since the points of the line share their samples; None where the jackknife would take minutes.

    Raises:
        ValueError: fewer samples than the line needs.

    Reference: Chong and Forsyth 2020, section 4.
    """
    if points < 3:
        raise ValueError(f"points must be at least 3, got {points}.")
    x, y = feature_pair(samples, reference, features, batch_size=batch_size, data_range=data_range)
    n, d = x.shape
    smallest = max(n // 10, 2 * d) if smallest is None else smallest
    if not 2 <= smallest <= n // 2:
        raise ValueError(f"Extrapolation needs at least {2 * smallest} samples for {d} features, got {n}.")
    target = FrechetStatistics().update(y)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(smallest, n, points, dtype=torch.float64).round().long().tolist()
    values = []
    for size in sizes:
        picked = torch.randperm(n, generator=generator)[:size].to(x.device)
        values.append(frechet_distance(FrechetStatistics().update(x[picked]), target))
    design = torch.stack([torch.ones(points), 1.0 / torch.tensor(sizes, dtype=torch.float64)], dim=1).double()
    observed = torch.tensor(values, dtype=torch.float64)
    inverse = torch.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ observed
    residual = ((observed - design @ coefficients) ** 2).sum() / (points - 2)
    fit = float(residual * inverse[0, 0])
    if d > MOST_DIMENSIONS or min(n, len(y)) < 40:
        return Estimate(float(coefficients[0]))
    spread = frechet_with_error(x, y, seed=seed).standard_error or 0.0
    return Estimate(float(coefficients[0]), math.sqrt(fit + spread**2))
