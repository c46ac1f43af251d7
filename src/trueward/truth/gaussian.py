r"""One Gaussian: everything about it is closed form, the probability-flow map and the divergence included.

KL(N(m, S) || N(m', S')) = ( tr(S'^-1 S) + (m' - m)^T S'^-1 (m' - m) - d + log det S' - log det S ) / 2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trueward.truth.components import Components
from trueward.truth.covariances import Spectrum
from trueward.truth.mixture import Divergence, GaussianMixture


class Gaussian(GaussianMixture):
    """N(mean, covariance) over samples of any shape.

    Args:
        mean: (*shape).
        covariance: () isotropic; (*shape) diagonal; (d, d) full over the flattened sample. Zero is allowed (a point mass).

    Raises:
        ValueError: shapes that disagree, or a covariance that is not positive semi-definite.
    """

    def __init__(self, mean: Tensor | Sequence[Any] | float, covariance: Tensor | Sequence[Any] | float) -> None:
        mean = torch.as_tensor(mean, dtype=torch.float64)
        covariance = torch.as_tensor(covariance, dtype=torch.float64, device=mean.device)
        if not bool(mean.isfinite().all()):
            raise ValueError("mean must be finite, but holds NaN or infinite values.")
        spectrum = Spectrum.of(covariance if covariance.ndim == 0 else covariance[None], 1, mean.shape, "covariance")
        Components.__init__(self, torch.ones(1, dtype=torch.float64, device=mean.device), mean[None], spectrum)

    def kl(self, other: GaussianMixture, generator: torch.Generator | None = None, n: int = 100_000) -> Divergence:
        """KL(self || other) in nats: closed form against a Gaussian, else as for mixtures."""
        if not isinstance(other, Gaussian) or self.shape != other.shape:
            return super().kl(other, generator, n)
        if self.spectrum.singular or other.spectrum.singular:
            raise ValueError(
                "The divergence of a singular Gaussian is not finite or not defined; compare at a time with noise."
            )
        ours, theirs, d = self.spectrum, other.spectrum, self.spectrum.size
        w, w_other = ours.values[0].expand(d), theirs.values[0].expand(d)
        gap = theirs.rotate(self._flat_means - other._flat_means).reshape(d)
        if ours.vectors is None:  # diag(U'^T S U')
            within = w if theirs.vectors is None else (theirs.vectors[0] ** 2).T @ w
        else:
            turned = ours.vectors[0] if theirs.vectors is None else theirs.vectors[0].T @ ours.vectors[0]
            within = turned**2 @ w
        total = (within / w_other + gap**2 / w_other - 1.0 + w_other.log() - w.log()).sum()
        return Divergence(0.5 * total.item(), 0.0)
