"""Distances between large sets, a block of rows at a time, so that memory grows with n and not with n^2."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK = 2**23  # distances held at once: 64 MB


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Iterator[tuple[slice, Tensor]]:
    """Blocks (rows of x, squared distances (rows, m)).

    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, in float64 and around the mean of y, where its cancellation is harmless.
    """
    centre = y.mean(0)
    x, y = x - centre, y - centre
    norms = (y * y).sum(1)
    rows = max(1, _BLOCK // max(1, len(y)))
    for first in range(0, len(x), rows):
        part = x[first : first + rows]
        block = torch.addmm(norms.expand(len(part), -1), part, y.T, alpha=-2.0)
        block += (part * part).sum(1, keepdim=True)
        yield slice(first, first + len(part)), block.clamp_(min=0.0)


def squared_radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Squared distance of every point to its k-th nearest neighbour in the same set, itself not counted.

    Raises:
        ValueError: k < 1 or k >= n.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    if k >= len(x):
        raise ValueError(f"k must be smaller than the number of points, got k={k} for {len(x)} points.")
    found = torch.empty(len(x), dtype=x.dtype, device=x.device)
    for rows, block in squared_distances(x, x):
        own = torch.arange(rows.start, rows.stop, device=x.device)
        block[own - rows.start, own] = torch.inf
        found[rows] = block.kthvalue(k, dim=1).values
    return found
