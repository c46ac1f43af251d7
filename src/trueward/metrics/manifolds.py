r"""How much of the samples is true and how much of the truth is sampled, by balls around the points.

With ``B_k(x)`` the ball around x that reaches to its k-th nearest neighbour among its own set, for samples g and reference r,

    precision = share of samples in some B_k(r)             recall   = share of the reference in some B_k(g)
    density   = mean number of B_k(r) a sample is in, / k   coverage = share of B_k(r) that hold a sample

Precision and recall: Kynkaanniemi et al. 2019. Density and coverage: Naeem et al. 2020; an outlier of the reference counts for
one ball only. Between equal distributions the expected density is 1 and the expected coverage 1 - 2^-k for equal, large n, which
is what to measure against, not 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from trueward.metrics.estimate import Estimate, share
from trueward.metrics.features import FeatureSpec, Samples, feature_pair
from trueward.metrics.neighbours import squared_distances, squared_radii

citation = ("kynkaanniemi2019improved", "naeem2020reliable")

# two computations of one distance may differ in their last digits; a neighbour is in its own ball
_TOLERANCE = 1.0 + 1e-9


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1] with the standard error of a share of n points, the balls taken as given."""

    precision: Estimate
    recall: Estimate


class DensityCoverage(NamedTuple):
    """Density >= 0 and coverage in [0, 1], with the standard errors of means over the points, the balls taken as given."""

    density: Estimate
    coverage: Estimate


def _mean(values: Float[Tensor, " n"]) -> Estimate:
    v = values.double()
    return Estimate(float(v.mean()), float(v.std(correction=1)) / math.sqrt(len(v)))


def precision_recall(
    samples: Samples,
    reference: Samples,
    k: int = 3,
    features: FeatureSpec = None,
    *,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
) -> PrecisionRecall:
    """Improved precision and recall.

    Args:
        samples, reference: (n, *shape), (m, *shape) tensor, array or dataset; n and m should be equal for numbers that compare.
        k: which neighbour a ball reaches to.
        features: see :func:`trueward.metrics.feature_extractor`.
        batch_size: samples whose features are computed at once.
        data_range: of the samples' values; a dataset knows its own.

    Raises:
        ValueError: k >= n, NaN, shapes that differ.

    Reference: Kynkaanniemi et al. 2019, eq. 1-3.
    """
    g, r = feature_pair(samples, reference, features, batch_size=batch_size, data_range=data_range)
    radii_r, radii_g = squared_radii(r, k) * _TOLERANCE, squared_radii(g, k) * _TOLERANCE
    precise = torch.zeros(len(g), dtype=torch.bool, device=g.device)
    recalled = torch.zeros(len(r), dtype=torch.bool, device=g.device)
    for rows, block in squared_distances(g, r):
        precise[rows] = (block <= radii_r).any(1)
        recalled |= (block <= radii_g[rows, None]).any(0)
    return PrecisionRecall(share(precise), share(recalled))


def density_coverage(
    samples: Samples,
    reference: Samples,
    k: int = 5,
    features: FeatureSpec = None,
    *,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
) -> DensityCoverage:
    """Density and coverage; the arguments are those of :func:`precision_recall`.

    Reference: Naeem et al. 2020, eq. 3-4.
    """
    g, r = feature_pair(samples, reference, features, batch_size=batch_size, data_range=data_range)
    radii = squared_radii(r, k) * _TOLERANCE
    count = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    covered = torch.zeros(len(r), dtype=torch.bool, device=g.device)
    for rows, block in squared_distances(g, r):
        inside = block <= radii
        count[rows] = inside.sum(1).double()
        covered |= inside.any(0)
    return DensityCoverage(_mean(count / k), share(covered))
