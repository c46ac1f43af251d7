r"""The sliced Wasserstein distance: one-dimensional optimal transport, which is sorting, averaged over directions

.. math:: SW_p^p = E_\theta\, \int_0^1 |F_\theta^{-1}(u) - G_\theta^{-1}(u)|^p\, du, \qquad \theta \text{ uniform on the sphere}.

F and G are the empirical distributions of the projections; for sets of different sizes both quantile functions are constant
between the levels i/n and j/m, and the integral is the exact sum over these pieces.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from trueward.metrics.features import FeatureSpec, Samples, feature_pair

citation = ("bonneel2015sliced",)


def _pieces(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of the pieces of [0, 1], and for each the index into n and into m sorted points; whole numbers until the end."""
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()  # sorted, times n m
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), levels[:-1]])
    return (levels - starts).double() / (n * m), starts // m, starts // n


def wasserstein_1d(x: Float[Tensor, "n s"], y: Float[Tensor, "m s"], p: float = 2.0) -> Float[Tensor, " s"]:
    """W_p^p between the columns of `x` and those of `y`, exactly."""
    x, y = x.sort(dim=0).values, y.sort(dim=0).values
    if len(x) == len(y):
        return (x - y).abs().pow(p).mean(0)
    lengths, i, j = (t.to(x.device) for t in _pieces(len(x), len(y)))
    return ((x[i] - y[j]).abs().pow(p) * lengths[:, None]).sum(0)


def sliced_wasserstein(
    samples: Samples,
    reference: Samples,
    projections: int = 256,
    features: FeatureSpec = None,
    *,
    p: float = 2.0,
    seed: int = 0,
    batch_size: int = 500,
    data_range: tuple[float, float] | None = None,
) -> float:
    """The sliced Wasserstein distance SW_p (not its power) between two sets.

    Args:
        samples, reference: (n, *shape), (m, *shape) tensor, array or dataset.
        projections: number of random directions; in one dimension a single one is exact and is used.
        features: see :func:`trueward.metrics.feature_extractor`.
        p: order, at least 1.
        seed: of the directions.
        batch_size: samples whose features are computed at once.
        data_range: of the samples' values; a dataset knows its own.

    Returns:
        the distance, in units of the values. Like every empirical Wasserstein distance it is larger for fewer samples.

    Raises:
        ValueError: projections < 1, p < 1, NaN, shapes that differ.

    Reference: Bonneel et al. 2015, eq. 3.
    """
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}.")
    if not 1.0 <= p < float("inf"):
        raise ValueError(f"p must be a finite number >= 1, got {p}.")
    x, y = feature_pair(samples, reference, features, batch_size=batch_size, data_range=data_range)
    if x.shape[1] == 1:
        theta = torch.ones(1, 1, dtype=x.dtype)
    else:
        generator = torch.Generator().manual_seed(seed)
        theta = torch.randn(x.shape[1], projections, dtype=torch.float64, generator=generator)
        theta /= theta.norm(dim=0)
    theta = theta.to(x.device)
    at_once = max(1, 2**22 // (len(x) + len(y)))
    powers = torch.cat([wasserstein_1d(x @ part, y @ part, p) for part in theta.split(at_once, dim=1)])
    return float(powers.mean() ** (1.0 / p))
