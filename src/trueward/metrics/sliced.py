r"""The sliced Wasserstein distance: one-dimensional optimal transport, which is sorting, averaged over directions

.. math:: SW_p^p = E_\theta\, \int_0^1 |F_\theta^{-1}(u) - G_\theta^{-1}(u)|^p\, du, \qquad \theta \text{ uniform on the sphere}.

F and G are the empirical distributions of the projections; for sets of different sizes both quantile functions are constant
between the levels i/n and j/m, and the integral is the exact sum over these pieces.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from trueward.metrics.estimate import Estimate, jackknife_variance, random_groups
from trueward.metrics.features import FeatureSpec, Samples, feature_pair

citation = ("bonneel2015sliced",)


def _pieces(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of the pieces of [0, 1], and for each the index into n and into m sorted points; whole numbers until the end."""
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()  # sorted, times n m
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), levels[:-1]])
    return (levels - starts).double() / (n * m), starts // m, starts // n


def _transport(x: Float[Tensor, "s n"], y: Float[Tensor, "s m"], p: float) -> Float[Tensor, " s"]:
    """W_p^p between rows that are sorted already."""
    if x.shape[1] == y.shape[1]:
        return (x - y).abs().pow(p).mean(1)
    lengths, i, j = (t.to(x.device) for t in _pieces(x.shape[1], y.shape[1]))
    return (x[:, i] - y[:, j]).abs().pow(p) @ lengths


def wasserstein_1d(x: Float[Tensor, "n s"], y: Float[Tensor, "m s"], p: float = 2.0) -> Float[Tensor, " s"]:
    """W_p^p between the columns of `x` and those of `y`, exactly."""
    return _transport(x.T.contiguous().sort(dim=1).values, y.T.contiguous().sort(dim=1).values, p)


def _directions(d: int, projections: int, seed: int) -> Float[Tensor, "s d"]:
    """Random unit vectors; in one dimension the only one."""
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}.")
    if d == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    theta = torch.randn(projections, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return theta / theta.norm(dim=1, keepdim=True)


def _check_order(p: float) -> None:
    if not 1.0 <= p < float("inf"):
        raise ValueError(f"p must be a finite number >= 1, got {p}.")


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
    _check_order(p)
    x, y = feature_pair(samples, reference, features, batch_size=batch_size, data_range=data_range)
    theta = _directions(x.shape[1], projections, seed).to(x.device)
    at_once = max(1, 2**22 // (len(x) + len(y)))
    powers = [wasserstein_1d(x @ part.T, y @ part.T, p) for part in theta.split(at_once)]
    return float(torch.cat(powers).mean() ** (1.0 / p))


def sliced_with_error(
    samples: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    projections: int = 256,
    *,
    p: float = 2.0,
    groups: int = 20,
    seed: int = 0,
) -> Estimate:
    """The sliced Wasserstein distance of two sets of features with its grouped-jackknife standard error.

    Like :func:`trueward.metrics.interval`, but every direction is sorted once: what is left of a sorted row stays sorted.
    """
    _check_order(p)
    theta = _directions(samples.shape[1], projections, seed).to(samples.device)
    sides = [random_groups(len(x), groups, seed + side) for side, x in enumerate((samples, reference))]
    whole = 0.0
    left_out = torch.zeros(2, groups, dtype=torch.float64)
    for part in theta.split(max(1, 2**22 // (len(samples) + len(reference)))):
        rows, orders = zip(*((part @ x.double().T).sort(dim=1) for x in (samples, reference)))
        whole += float(_transport(rows[0], rows[1], p).sum())
        for side, x in enumerate((samples, reference)):
            for g, group in enumerate(sides[side]):
                keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
                keep[group.to(x.device)] = False
                kept = rows[side][keep[orders[side]]].view(len(part), -1)
                pair = (kept, rows[1]) if side == 0 else (rows[0], kept)
                left_out[side, g] += float(_transport(*pair, p).sum())
    variance = sum(jackknife_variance(((side / len(theta)) ** (1.0 / p)).tolist()) for side in left_out)
    return Estimate((whole / len(theta)) ** (1.0 / p), math.sqrt(variance))
