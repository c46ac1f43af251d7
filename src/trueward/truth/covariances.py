r"""Covariance matrices by their eigenvalues: one decomposition, then every noise level costs matrix products only.

With S_k = U_k diag(w_k) U_k^T the marginal covariance at every time shares the eigenvectors,

    alpha^2 S_k + sigma^2 I = U_k diag(alpha^2 w_k + sigma^2) U_k^T

so nothing but numbers changes with time. Isotropic and diagonal covariances have U_k = I and never build a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Eigenvalues below this fraction of the largest are rounding noise of an exactly singular covariance.
_RELATIVE_ZERO = 1e-13


@dataclass(frozen=True, eq=False)
class Spectrum:
    """K covariances of size d x d.

    Attributes:
        values: eigenvalues, (K, 1) for isotropic covariances, else (K, d).
        vectors: (K, d, d), eigenvectors in columns; None where they are the coordinate axes.
        size: d.
    """

    values: Tensor
    vectors: Tensor | None
    size: int

    @classmethod
    def of(cls, covariances: Tensor, components: int, shape: Sequence[int], name: str = "covariances") -> Spectrum:
        """Reads K covariances.

        Args:
            covariances: () or (K,) isotropic; (K, *shape) diagonal; (K, d, d) full with d the product of `shape`. A full
                covariance expanded over the components is decomposed once.
            components: K.
            shape: shape of one sample.
            name: what to call the argument in messages.

        Raises:
            ValueError: another shape, non-finite entries, an asymmetric or indefinite matrix.
        """
        size = math.prod(shape)
        if not bool(covariances.isfinite().all()):
            raise ValueError(f"{name} must be finite, but holds NaN or infinite values.")
        if covariances.ndim == 0 or covariances.shape == (components,):
            return cls(_not_negative(covariances.expand(components).reshape(components, 1), name), None, size)
        if covariances.shape == (components, *shape):
            return cls(_not_negative(covariances.reshape(components, size), name), None, size)
        if covariances.shape == (components, size, size):
            shared = components > 1 and covariances.stride(0) == 0
            values, vectors = _decompose(covariances[:1] if shared else covariances, name)
            return cls(values.expand(components, size), vectors.expand(components, size, size), size)
        raise ValueError(
            f"{name} has shape {tuple(covariances.shape)}; for {components} components of shape {tuple(shape)} it must be "
            f"() or ({components},) (isotropic), {(components, *shape)} (diagonal) or {(components, size, size)} (full)."
        )

    @property
    def singular(self) -> bool:
        """True if any covariance has a zero eigenvalue: the distribution has no density."""
        return bool((self.values <= 0).any())

    def noised(self, alpha: float, sigma: float) -> Spectrum:
        """alpha^2 S_k + sigma^2 I."""
        return Spectrum(alpha**2 * self.values + sigma**2, self.vectors, self.size)

    def to(self, device: torch.device | str) -> Spectrum:
        """The same on another device."""
        return Spectrum(self.values.to(device), None if self.vectors is None else self.vectors.to(device), self.size)

    def rotate(self, x: Tensor, which: slice = slice(None)) -> Tensor:
        """Coordinates U_k^T x of (B, d) or (c, B, d) vectors for the components `which`: (c, B, d), or `x` itself if U = I."""
        return x if self.vectors is None else torch.matmul(x, self.vectors[which])

    def rotate_back(self, y: Tensor, which: slice = slice(None)) -> Tensor:
        """U_k y for coordinates (c, B, d)."""
        return y if self.vectors is None else torch.matmul(y, self.vectors[which].transpose(-1, -2))

    def diagonal(self, values: Tensor, which: slice = slice(None)) -> Tensor:
        """diag(U_k diag(values) U_k^T) for values (c, B, 1 or d): (c, B, 1 or d)."""
        if self.vectors is None:
            return values
        return torch.matmul(values, self.vectors[which].transpose(-1, -2) ** 2)

    def matrix(self, k: int, values: Tensor) -> Tensor:
        """U_k diag(values) U_k^T for values (*, 1 or d): (*, d, d)."""
        values = values.expand(*values.shape[:-1], self.size)
        if self.vectors is None:
            return torch.diag_embed(values)
        u = self.vectors[k]
        return torch.matmul(u * values.unsqueeze(-2), u.T)


def _not_negative(values: Tensor, name: str) -> Tensor:
    if bool((values < 0).any()):
        raise ValueError(f"{name} must not be negative, got {values.min().item():g}.")
    return values


def _decompose(covariances: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues (K, d) and eigenvectors (K, d, d), one matrix at a time to bound the memory."""
    k, d, _ = covariances.shape
    values, vectors = covariances.new_empty(k, d), covariances.new_empty(k, d, d)
    for i, matrix in enumerate(covariances):
        scale = matrix.abs().max().clamp(min=1e-300)
        if bool(((matrix - matrix.T).abs() > 1e-8 * scale).any()):
            raise ValueError(f"{name}: covariance {i} is not symmetric.")
        w, u = torch.linalg.eigh(0.5 * (matrix + matrix.T))
        if w[0] < -1e-8 * scale:
            raise ValueError(f"{name}: covariance {i} has the negative eigenvalue {w[0].item():g}.")
        values[i], vectors[i] = torch.where(w > _RELATIVE_ZERO * scale * d, w, 0.0), u
    return values, vectors
