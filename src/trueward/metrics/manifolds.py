r"""How much of the samples is true and how much of the truth is sampled, by balls around the points.

With ``B_k(x)`` the ball around x that reaches to its k-th nearest neighbour among its own set, for samples g and reference r,

    precision = share of samples in some B_k(r)             recall   = share of the reference in some B_k(g)
    density   = mean number of B_k(r) a sample is in, / k   coverage = share of B_k(r) that hold a sample

Precision and recall: Kynkaanniemi et al. 2019. Density and coverage: Naeem et al. 2020; an outlier of the reference counts for
one ball only. Between equal distributions the expected density is 1 and the expected coverage 1 - 2^-k for equal, large n, which
is what to measure against, not 1.

Standard errors are grouped-jackknife errors over both sets: that the balls depend on the draw is part of them. They err on the
large side (measured: 1.2 to 2.4 times the true spread), where the binomial formula is up to twice too small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trueward.metrics.estimate import Estimate, jackknife_variance, random_groups
from trueward.metrics.features import FeatureSpec, Samples, feature_pair
from trueward.metrics.neighbours import in_balls, squared_distances, squared_radii

citation = ("kynkaanniemi2019improved", "naeem2020reliable")

Groups = list[Int[Tensor, " size"]]


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1] with standard errors (None for sets too small for the jackknife)."""

    precision: Estimate
    recall: Estimate


class DensityCoverage(NamedTuple):
    """Density >= 0 and coverage in [0, 1] with standard errors (None for sets too small for the jackknife)."""

    density: Estimate
    coverage: Estimate


def _groups(x: Tensor, k: int, groups: int, seed: int) -> Groups:
    """Random groups of the points, none if leaving one out leaves too few."""
    if groups < 2 or len(x) < 2 * groups or k >= len(x) - -(-len(x) // groups):
        return []
    return random_groups(len(x), groups, seed)


def _without(values: Float[Tensor, " n"], group: Tensor) -> float:
    """The mean of `values` over the points that are not in the group."""
    rest = values.sum() - values[group.to(values.device)].sum()
    return float(rest / (len(values) - len(group)))


def _estimate(value: float, *sides: list[float]) -> Estimate:
    """`value` with the jackknife error over several sides, each the values with one group left out."""
    if not all(sides):
        return Estimate(value)
    return Estimate(value, math.sqrt(sum(jackknife_variance(side) for side in sides)))


def _share_in_balls(points: Tensor, centres: Tensor, k: int, point_groups: Groups, centre_groups: Groups) -> Estimate:
    """The share of points in some ball B_k around a centre."""
    inside = in_balls(points, centres, squared_radii(centres, k, centre_groups)).double()
    shares: list[float] = inside.mean(1).tolist()
    return _estimate(shares[0], [_without(inside[0], group) for group in point_groups], shares[1:])


def precision_recall(
    samples: Samples,
    reference: Samples,
    k: int = 3,
    features: FeatureSpec = None,
    *,
    groups: int = 10,
    seed: int = 0,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
) -> PrecisionRecall:
    """Improved precision and recall.

    Args:
        samples, reference: (n, *shape), (m, *shape) tensor, array or dataset; n and m should be equal for numbers that compare.
        k: which neighbour a ball reaches to.
        features: see :func:`trueward.metrics.feature_extractor`.
        groups: of the jackknife; 0: no standard errors, in a fraction of the time.
        seed: of the random groups.
        batch_size: samples whose features are computed at once.
        data_range: of the samples' values; a dataset knows its own.

    Raises:
        ValueError: k >= n, NaN, shapes that differ.

    Reference: Kynkaanniemi et al. 2019, eq. 1-3.
    """
    g, r = feature_pair(samples, reference, features, batch_size=batch_size, data_range=data_range)
    sample_groups, reference_groups = _groups(g, k, groups, seed), _groups(r, k, groups, seed + 1)
    return PrecisionRecall(
        _share_in_balls(g, r, k, sample_groups, reference_groups),
        _share_in_balls(r, g, k, reference_groups, sample_groups),
    )


def density_coverage(
    samples: Samples,
    reference: Samples,
    k: int = 5,
    features: FeatureSpec = None,
    *,
    groups: int = 10,
    seed: int = 0,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
) -> DensityCoverage:
    """Density and coverage; the arguments are those of :func:`precision_recall`.

    Reference: Naeem et al. 2020, eq. 3-4.
    """
    g, r = feature_pair(samples, reference, features, batch_size=batch_size, data_range=data_range)
    sample_groups, reference_groups = _groups(g, k, groups, seed), _groups(r, k, groups, seed + 1)
    radii = squared_radii(r, k, reference_groups)
    number = torch.zeros(len(g), dtype=torch.int64, device=g.device)
    for i, group in enumerate(sample_groups):
        number[group.to(g.device)] = i
    balls = torch.zeros(len(radii), len(g), dtype=torch.float64, device=g.device)  # how many balls each sample is in
    held = torch.zeros(len(radii), len(r), dtype=torch.bool, device=g.device)  # whether each ball holds a sample
    by_group = torch.zeros(max(1, len(sample_groups)), len(r), device=g.device)  # samples of each group in each ball
    for rows, block in squared_distances(g, r):
        for i, squared in enumerate(radii):
            inside = (block <= squared).to(torch.float32)  # float32 counts exactly up to 2^24, and fast
            balls[i, rows] = inside.sum(1).double()
            held[i] |= inside.sum(0) > 0
            if i == 0:
                by_group.index_add_(0, number[rows], inside)

    density = [float(b.mean()) / k for b in balls]
    covered = held.double()
    # a group of the reference that is left out takes its balls along
    without_reference = [
        float(covered[i + 1].sum()) / (len(r) - len(group)) for i, group in enumerate(reference_groups)
    ]
    without_samples = [float(((by_group.sum(0) - own) > 0).double().mean()) for own in by_group]
    return DensityCoverage(
        _estimate(density[0], [_without(balls[0], group) / k for group in sample_groups], density[1:]),
        _estimate(float(covered[0].mean()), without_samples if sample_groups else [], without_reference),
    )
