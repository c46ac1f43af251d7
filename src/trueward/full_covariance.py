r"""A full covariance of x_0 given x_t, for data of few dimensions.

Held as its eigenvectors U and eigenvalues w, so that all a sampler or a likelihood bound does to it,

    lambda^2 I + kappa^2 Sigma = U (lambda^2 + kappa^2 w) U^T,      sqrt(Sigma) = U sqrt(w) U^T,      clamp,

touches the eigenvalues alone; one decomposition serves every step, every eta and every pair of times.
"""

from __future__ import annotations

import torch
from torch import Tensor

Coefficient = float | Tensor


class FullCovariance:
    """Symmetric matrices over flattened samples: one for each row of a batch, or one for all.

    Args:
        values: (batch, d) or (1, d), eigenvalues.
        vectors: (batch, d, d) or (1, d, d), eigenvectors in the columns.
    """

    __slots__ = ("values", "vectors")

    def __init__(self, values: Tensor, vectors: Tensor) -> None:
        if vectors.ndim != 3 or vectors.shape[1] != vectors.shape[2] or values.shape[-1] != vectors.shape[-1]:
            raise ValueError(
                f"values must be (batch, d) and vectors (batch, d, d), got {tuple(values.shape)}, {tuple(vectors.shape)}."
            )
        self.values, self.vectors = values, vectors

    @classmethod
    def of(cls, matrix: Tensor) -> FullCovariance:
        """Of symmetric matrices (d, d) or (batch, d, d)."""
        matrix = matrix if matrix.ndim == 3 else matrix.unsqueeze(0)
        return cls(*torch.linalg.eigh(0.5 * (matrix + matrix.mT)))

    @property
    def matrix(self) -> Tensor:
        """(batch, d, d)."""
        return (self.vectors * self.values.unsqueeze(1)) @ self.vectors.mT

    @property
    def diagonal(self) -> Tensor:
        """(batch, d)."""
        return (self.vectors**2 * self.values.unsqueeze(1)).sum(-1)

    def __mul__(self, factor: Coefficient) -> FullCovariance:
        """Scaled by a number, or by one number per row (batch, 1, ..., 1)."""
        return FullCovariance(self.values * _per_row(factor), self.vectors)

    def __add__(self, variance: Coefficient) -> FullCovariance:
        """With `variance` (a number, or one per row) added to the diagonal."""
        return FullCovariance(self.values + _per_row(variance), self.vectors)

    __rmul__, __radd__ = __mul__, __add__

    def sqrt(self) -> FullCovariance:
        """The symmetric square root; eigenvalues below zero (rounding) count as zero."""
        return FullCovariance(self.values.clamp(min=0.0).sqrt(), self.vectors)

    def clamp(self, min: Coefficient | None = None, max: Coefficient | None = None) -> FullCovariance:
        """With the variance in every direction kept within [min, max]."""
        values = self.values
        if min is not None:
            values = torch.maximum(values, torch.as_tensor(_per_row(min), dtype=values.dtype, device=values.device))
        if max is not None:
            values = torch.minimum(values, torch.as_tensor(_per_row(max), dtype=values.dtype, device=values.device))
        return FullCovariance(values, self.vectors)

    def __matmul__(self, x: Tensor) -> Tensor:
        """The matrix of every row times its flattened sample; (batch, *shape) to (batch, *shape)."""
        flat = x.reshape(x.shape[0], -1)
        return self.rotate_back(self.rotate(flat) * self.values).reshape(x.shape)

    def rotate(self, flat: Tensor) -> Tensor:
        """U^T x for x (batch, d)."""
        if self.vectors.shape[0] == 1:
            return flat @ self.vectors[0].to(flat.dtype)
        return torch.einsum("bij,bi->bj", self.vectors.to(flat.dtype), flat)

    def rotate_back(self, flat: Tensor) -> Tensor:
        """U y for y (batch, d)."""
        if self.vectors.shape[0] == 1:
            return flat @ self.vectors[0].T.to(flat.dtype)
        return torch.einsum("bij,bj->bi", self.vectors.to(flat.dtype), flat)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FullCovariance:
        """On another device or in another dtype."""
        return FullCovariance(self.values.to(device, dtype), self.vectors.to(device, dtype))


def _per_row(value: Coefficient) -> Coefficient:
    """One number per row as (batch, 1); plain numbers as they are."""
    if isinstance(value, Tensor) and value.ndim:
        if value.numel() != value.shape[0]:
            raise ValueError(
                f"A full covariance is scaled by one number per row, got a tensor of shape {tuple(value.shape)}."
            )
        return value.reshape(-1, 1)
    return value
