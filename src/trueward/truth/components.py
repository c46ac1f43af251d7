r"""The components of a mixture in their eigenvectors, and the posterior they give: the engine of :mod:`trueward.truth`.

Components are visited in chunks with a running log-sum-exp, so that memory stays at a few (batch, d) arrays however many
there are. Mean and eps follow from one another, x = alpha mean + sigma eps; where alpha >= sigma the components'
eps_k = sigma V_k^-1 (x - alpha mu_k) are summed and the mean derived, elsewhere the other way round, so neither loses its
digits to cancellation at extreme signal-to-noise ratios.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trueward.truth.covariances import Spectrum

Coefficient = float | Tensor

# Variances are floored here, so that a point mass without noise divides by something: y^2 / floor stays below 1e300.
FLOOR = 1e-280
# Stands for log(0) in masked mixture weights; finite, so that differences of two of them are 0 and not NaN.
NOTHING = -1e300
# Numbers in one chunk of (components, batch, d) work arrays; about what a core's cache holds.
CHUNK = 1 << 18


class Answer(NamedTuple):
    """Posterior of x_0 for flat rows: mean and eps (B, d), diagonal covariance (B, d) or None."""

    mean: Tensor
    eps: Tensor
    var: Tensor | None


class Components:
    """K Gaussians N(mu_k, S_k) with weights pi_k over flattened samples.

    Attributes:
        weights: (K,) float64.
        means: (K, *shape) float64.
        spectrum: the covariances.
        shape: shape of one sample.
    """

    def __init__(self, weights: Tensor, means: Tensor, spectrum: Spectrum) -> None:
        self.weights, self.means, self.spectrum = weights, means, spectrum
        self.shape: tuple[int, ...] = tuple(means.shape[1:])
        self._flat_means = means.reshape(len(weights), spectrum.size)
        self._centres = spectrum.rotate(self._flat_means.unsqueeze(1))  # U_k^T mu_k, (K, 1, d)
        self._log_weights = weights.log().view(-1, 1)

    @property
    def components(self) -> int:
        """K, the number of components."""
        return self.weights.numel()

    @property
    def device(self) -> torch.device:
        """Where the numbers are kept and everything is computed."""
        return self.means.device

    def chunks(self, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of components with y = U_k^T (x - alpha mu_k), (c, B, d), and v = alpha^2 w_k + sigma^2, (c, 1 or B, 1 or d)."""
        size = max(1, CHUNK // max(1, x.numel()))
        for first in range(0, self.components, size):
            which = slice(first, min(first + size, self.components))
            y = self.spectrum.rotate(x, which) - alpha * self._centres[which]
            yield which, y, floored(alpha**2 * self.spectrum.values[which].unsqueeze(1) + sigma**2)

    def _log_density(self, y: Tensor, v: Tensor) -> Tensor:
        """log N of each component, (c, B)."""
        d = self.spectrum.size
        log_det = v.log().sum(-1) * (d / v.shape[-1])
        return -0.5 * ((y**2 / v).sum(-1) + log_det + d * math.log(2.0 * math.pi))

    def log_joint(self, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """log pi_k N(x; alpha mu_k, V_k), (K, B)."""
        parts = [self._log_weights[which] + self._log_density(y, v) for which, y, v in self.chunks(x, alpha, sigma)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def answer(
        self,
        x: Tensor,
        alpha: Coefficient,
        sigma: Coefficient,
        variance: bool = False,
        log_weights: Tensor | None = None,
    ) -> Answer:
        """The posterior of x_0 for flat rows x (B, d) float64.

        Args:
            alpha, sigma: numbers, or (B, 1).
            variance: compute the diagonal covariance too.
            log_weights: (K, 1 or B), other mixture weights (for rows of different classes).
        """
        log_weights = self._log_weights if log_weights is None else log_weights
        by_eps: bool | Tensor = alpha >= sigma
        kept = 1.0 - by_eps.to(torch.float64) if isinstance(by_eps, Tensor) else 1.0 - by_eps
        top: Tensor | None = None
        sums: list[Tensor] = []
        for which, y, v in self.chunks(x, alpha, sigma):
            w = self.spectrum.values[which].unsqueeze(1)
            log_joint = log_weights[which] + self._log_density(y, v)
            if isinstance(by_eps, Tensor):
                factor = torch.where(by_eps, sigma / v, alpha * w / v)
            else:
                factor = sigma / v if by_eps else alpha * w / v
            q = factor * y + kept * self._centres[which]
            highest = log_joint.detach().amax(0) if top is None else torch.maximum(log_joint.detach().amax(0), top)
            weight = torch.exp(log_joint - highest).unsqueeze(-1)  # (c, B, 1)
            if variance:
                q = self.spectrum.rotate_back(q, which)
                own = self.spectrum.diagonal(w / v, which)
                parts = [weight.sum(0), (weight * q).sum(0), (weight * q**2).sum(0), (weight * own).sum(0)]
            else:
                parts = [weight.sum(0), self.spectrum.rotate_back(weight * q, which).sum(0)]
            if top is not None:
                shrink = torch.exp(top - highest).unsqueeze(-1)
                parts = [part + shrink * before for part, before in zip(parts, sums)]
            top, sums = highest, parts
        first = sums[1] / sums[0]
        if isinstance(by_eps, Tensor):
            mean = torch.where(by_eps, (x - sigma * first) / alpha, first)
            eps = torch.where(by_eps, first, (x - alpha * first) / sigma)
            scale: Coefficient = torch.where(by_eps, sigma / alpha, 1.0)
        elif by_eps:
            mean, eps, scale = (x - sigma * first) / alpha, first, sigma / alpha
        else:
            mean, eps, scale = first, (x - alpha * first) / sigma, 1.0
        if not variance:
            return Answer(mean, eps, None)
        spread = (sums[2] / sums[0] - first**2).clamp(min=0.0)
        return Answer(mean, eps, sigma**2 * sums[3] / sums[0] + scale**2 * spread)

    def _into_eigenvectors(self, x: Tensor, component: Tensor) -> Tensor:
        """U_k^T x for rows of different components, (B, d)."""
        if self.spectrum.vectors is None:
            return x
        out = torch.empty_like(x)
        for k in component.unique().tolist():
            rows = component == k
            out[rows] = x[rows] @ self.spectrum.vectors[k]
        return out

    def _transform(self, y: Tensor, component: Tensor, scale: Coefficient) -> Tensor:
        """U_k (scale y) for rows of different components, (B, d)."""
        y = y * scale
        if self.spectrum.vectors is None:
            return y
        out = torch.empty_like(y)
        for k in component.unique().tolist():
            rows = component == k
            out[rows] = y[rows] @ self.spectrum.vectors[k].T
        return out


def floored(v: Tensor) -> Tensor:
    return v.clamp(min=FLOOR)
