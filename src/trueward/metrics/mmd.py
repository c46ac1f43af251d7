r"""The squared maximum mean discrepancy with a Gaussian kernel ``k(x, y) = exp(-|x - y|^2 / (2 h^2))``, without bias:

.. math:: \mathrm{MMD}^2 = \frac{\sum_{i \ne j} k(x_i, x_j)}{n(n-1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{m(m-1)}
          - \frac{2 \sum_{ij} k(x_i, y_j)}{nm}.

Its expectation is 0 for equal distributions, so single values may be negative. The standard error holds for equal and for
different distributions: the delete-one jackknife (in closed form, from row sums) counts the second-order term of the Hoeffding
decomposition twice, and that term, known from the sums of squares, is taken off once, never leaving less than the term itself
(so that for equal distributions the error is up to a third too large rather than too small).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from trueward.metrics.estimate import Estimate
from trueward.metrics.features import FeatureSpec, Samples, feature_pair
from trueward.metrics.neighbours import squared_distances

citation = ("gretton2012kernel",)


@dataclass(frozen=True)
class MMD(Estimate):
    """The unbiased squared MMD with its standard error and the `bandwidth` h it was measured with."""

    bandwidth: float = math.nan

    def to_dict(self) -> dict[str, float | None]:
        return {**super().to_dict(), "bandwidth": self.bandwidth}


def median_bandwidth(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], most: int = 1000) -> float:
    """The median distance between points of both sets (at most `most` evenly spaced rows of each).

    Raises:
        ValueError: if more than half of the pairs coincide.
    """
    pooled = torch.cat(
        [z[torch.linspace(0, len(z) - 1, min(most, len(z)), dtype=torch.float64).long().to(z.device)] for z in (x, y)]
    )
    found = float(torch.pdist(pooled).median())
    if found == 0.0:
        raise ValueError("The median distance is 0, since most points coincide: give a bandwidth.")
    return found


class _Sums:
    """Row sums, column sums and the sum of squares of a kernel matrix; of one set, without the diagonal."""

    def __init__(self, x: Tensor, y: Tensor | None, bandwidth: float) -> None:
        other = x if y is None else y
        self.rows = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self.columns = torch.zeros(len(other), dtype=torch.float64, device=x.device)
        self.squares = 0.0
        for rows, block in squared_distances(x, other):
            kernel = torch.exp_(block.mul_(-0.5 / bandwidth**2))
            if y is None:
                own = torch.arange(rows.start, rows.stop, device=x.device)
                kernel[own - rows.start, own] = 0.0
            self.rows[rows] = kernel.sum(1)
            self.columns += kernel.sum(0)
            self.squares += float((kernel * kernel).sum())
        self.total = float(self.rows.sum())


def mmd(
    samples: Samples,
    reference: Samples,
    bandwidth: float | None = None,
    features: FeatureSpec = None,
    *,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
) -> MMD:
    """The unbiased squared MMD between two sets.

    Args:
        samples, reference: (n, *shape), (m, *shape) tensor, array or dataset, at least 4 each.
        bandwidth: h; None: the median distance. Only values of one bandwidth compare.
        features: see :func:`trueward.metrics.feature_extractor`.
        batch_size: samples whose features are computed at once.
        data_range: of the samples' values; a dataset knows its own.

    Returns:
        value, standard error and bandwidth.

    Raises:
        ValueError: bandwidth <= 0, fewer than 4 samples, NaN, shapes that differ.

    Reference: Gretton et al. 2012, eq. 3.
    """
    if bandwidth is not None and not (math.isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f"bandwidth must be a positive number, got {bandwidth}.")
    x, y = feature_pair(samples, reference, features, batch_size=batch_size, data_range=data_range, least=4)
    h = median_bandwidth(x, y) if bandwidth is None else bandwidth
    n, m = len(x), len(y)
    xx, yy, xy = _Sums(x, None, h), _Sums(y, None, h), _Sums(x, y, h)
    within_x, within_y, between = xx.total / (n * (n - 1)), yy.total / (m * (m - 1)), xy.total / (n * m)
    value = within_x + within_y - 2.0 * between

    # the statistic without x_i, up to what does not depend on i; likewise without y_j
    without_x = (xx.total - 2.0 * xx.rows) / ((n - 1) * (n - 2)) - 2.0 * (xy.total - xy.rows) / ((n - 1) * m)
    without_y = (yy.total - 2.0 * yy.rows) / ((m - 1) * (m - 2)) - 2.0 * (xy.total - xy.columns) / (n * (m - 1))
    jackknife = sum(float((len(t) - 1) * t.var(correction=0)) for t in (without_x, without_y))

    # variance of what remains of the kernel when its row and column means are taken out
    rest_x = xx.squares / (n * (n - 1)) - 2.0 * float((xx.rows / (n - 1)).square().mean()) + within_x**2
    rest_y = yy.squares / (m * (m - 1)) - 2.0 * float((yy.rows / (m - 1)).square().mean()) + within_y**2
    row_means, column_means = (xy.rows / m).square().mean(), (xy.columns / n).square().mean()
    rest_xy = xy.squares / (n * m) - float(row_means + column_means) + between**2
    second = 2.0 * rest_x / (n * (n - 1)) + 2.0 * rest_y / (m * (m - 1)) + 4.0 * rest_xy / (n * m)
    variance = max(jackknife - second, second, 0.0)
    return MMD(value, math.sqrt(variance), h)
