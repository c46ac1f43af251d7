"""Ready-made truths: the mixtures that papers and the tests of this project measure on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trueward.truth.mixture import GaussianMixture


def bimodal() -> GaussianMixture:
    """0.3 N(-0.8, 0.04) + 0.7 N(0.5, 0.09) on the line, shape (1,): two unequal modes, never degenerate."""
    return GaussianMixture([0.3, 0.7], [[-0.8], [0.5]], [0.04, 0.09])


def grid_of_gaussians(side: int = 5, spacing: float = 2.0, std: float = 0.05) -> GaussianMixture:
    """side^2 equal modes on a square grid around the origin, shape (2,); with the defaults, the 25-mode benchmark.

    Args:
        side: modes along one edge.
        spacing: distance of neighbours, data units.
        std: standard deviation of a mode, data units; 0 gives point masses.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1, got {side}.")
    if not (spacing > 0 and std >= 0):
        raise ValueError(f"spacing must be positive and std not negative, got spacing={spacing}, std={std}.")
    axis = (torch.arange(side, dtype=torch.float64) - 0.5 * (side - 1)) * spacing
    means = torch.cartesian_prod(axis, axis)
    return GaussianMixture(torch.full((side**2,), 1.0 / side**2, dtype=torch.float64), means, std**2)


def point_masses(points: Tensor | Sequence[Any], weights: Tensor | Sequence[float] | None = None) -> GaussianMixture:
    """Exactly these data and nothing else: the empirical distribution of `points`, what a model that memorises learns.

    Args:
        points: (K, *shape).
        weights: (K,); default equal.
    """
    points = torch.as_tensor(points, dtype=torch.float64)
    if points.ndim < 1 or points.shape[0] == 0:
        raise ValueError(f"points must be (K, *shape) with K >= 1, got shape {tuple(points.shape)}.")
    if weights is None:
        weights = torch.full((points.shape[0],), 1.0 / points.shape[0], dtype=torch.float64)
    return GaussianMixture(weights, points, 0.0)
