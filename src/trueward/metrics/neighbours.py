"""Distances between large sets, a block of rows at a time, so that memory grows with n and not with n^2; balls around points."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_BLOCK = 2**23  # distances held at once: 64 MB
# two computations of one distance may differ in their last digits; a neighbour is in its own ball
_TOLERANCE = 1.0 + 1e-9


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


def nearest(x: Float[Tensor, "n d"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Squared distances to the k nearest neighbours of every point in the same set, itself not counted, and which they are.

    Raises:
        ValueError: k < 1 or k >= n.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    if k >= len(x):
        raise ValueError(f"k must be smaller than the number of points, got k={k} for {len(x)} points.")
    distances = torch.empty(len(x), k, dtype=x.dtype, device=x.device)
    indices = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for rows, block in squared_distances(x, x):
        own = torch.arange(rows.start, rows.stop, device=x.device)
        block[own - rows.start, own] = torch.inf
        # several times faster than kthvalue
        distances[rows], indices[rows] = block.topk(k, dim=1, largest=False)
    return distances, indices


def squared_radii(
    x: Float[Tensor, "n d"], k: int, groups: list[Int[Tensor, " size"]] | None = None
) -> Float[Tensor, "1+groups n"]:
    """Squared radii of the balls that reach to the k-th nearest neighbour: of all points, then without each of the groups.

    The ball of a point that is left out has the radius -1: nothing is in it.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    groups = groups or []
    number = torch.full((len(x),), -1, device=x.device)
    for g, group in enumerate(groups):
        number[group.to(x.device)] = g
    more = min(len(x) - 1, 3 * k + 12) if groups else k
    while True:
        distances, indices = nearest(x, max(k, more))
        theirs = number[indices]
        found = [distances[:, k - 1] * _TOLERANCE]
        enough = True
        for g, group in enumerate(groups):
            rank = (theirs != g).cumsum(1)
            enough = enough and bool((rank[:, -1] >= k).all())
            position = (rank < k).sum(1, keepdim=True).clamp(max=distances.shape[1] - 1)
            radii = distances.gather(1, position)[:, 0] * _TOLERANCE
            radii[group.to(x.device)] = -1.0
            found.append(radii)
        if enough or more == len(x) - 1:
            return torch.stack(found)
        more = min(len(x) - 1, 2 * more)


def in_balls(
    points: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], radii: Float[Tensor, "g m"]
) -> Bool[Tensor, "g n"]:
    """Whether each point is in some ball, for every row of squared radii."""
    found = torch.zeros(len(radii), len(points), dtype=torch.bool, device=points.device)
    for rows, block in squared_distances(points, centres):
        for g, squared in enumerate(radii):
            # the largest byte of a row: many times faster than any()
            found[g, rows] = (block <= squared).view(torch.uint8).amax(1).bool()
    return found
