r"""Gaussian mixtures with exact answers at every noise level.

Data x_0 ~ sum_k pi_k N(mu_k, S_k) and x_t = alpha x_0 + sigma eps give, with V_k = alpha^2 S_k + sigma^2 I,

    p_t(x)        = sum_k pi_k N(x; alpha mu_k, V_k)
    r_k(x)        = pi_k N(x; alpha mu_k, V_k) / p_t(x)                                   (responsibilities)
    score         = -sum_k r_k V_k^-1 (x - alpha mu_k)
    m_k           = mu_k + alpha S_k V_k^-1 (x - alpha mu_k),    C_k = sigma^2 S_k V_k^-1
    E[x_0 | x]    = sum_k r_k m_k
    Cov[x_0 | x]  = sum_k r_k (C_k + m_k m_k^T) - E[x_0 | x] E[x_0 | x]^T

Everything is computed in float64 in the eigenvectors of S_k (see :mod:`trueward.truth.components`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from trueward.schedules import Schedule, Time
from trueward.truth.components import Coefficient, Components, floored
from trueward.truth.covariances import Spectrum

if TYPE_CHECKING:
    from trueward.truth.denoiser import TruthDenoiser


class Divergence(NamedTuple):
    """A divergence in nats and the standard error of its estimate (0 where it is closed form)."""

    value: float
    standard_error: float


class GaussianMixture(Components):
    """sum_k pi_k N(mu_k, S_k) over samples of any shape.

    Args:
        weights: (K,), positive, summing to 1.
        means: (K, *shape).
        covariances: () or (K,) isotropic variances; (K, *shape) diagonals; (K, d, d) full matrices over the flattened
            sample, d the product of `shape`. Zero is allowed (point masses); such a mixture has no density without noise.

    Attributes:
        weights: (K,) float64.
        means: (K, *shape) float64.
        shape: shape of one sample.

    Raises:
        ValueError: shapes that disagree, weights that are no distribution, covariances that are not positive semi-definite.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence[Any],
        covariances: Tensor | Sequence[Any] | float,
    ) -> None:
        weights, means, covariances = (_float64(value) for value in (weights, means, covariances))
        if weights.ndim != 1 or weights.numel() == 0:
            raise ValueError(f"weights must be (K,) with K >= 1, got shape {tuple(weights.shape)}.")
        if not bool((weights > 0).all()) or abs(weights.sum().item() - 1.0) > 1e-6:
            raise ValueError(f"weights must be positive and sum to 1, got {weights.tolist()[:8]}.")
        if means.ndim < 1 or means.shape[0] != weights.numel():
            raise ValueError(f"means has {tuple(means.shape)[:1]} rows, but there are {weights.numel()} weights.")
        if not bool(means.isfinite().all()):
            raise ValueError("means must be finite, but holds NaN or infinite values.")
        spectrum = Spectrum.of(covariances.to(means.device), weights.numel(), means.shape[1:])
        Components.__init__(self, weights.to(means.device) / weights.sum(), means, spectrum)

    def _flat(self, x: Tensor) -> Tensor:
        """(batch, *shape) of any float dtype as (batch, d) float64 on the truth's device."""
        if x.ndim < 1 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must be (batch, *{self.shape}), got shape {tuple(x.shape)}.")
        return x.to(self.device, torch.float64).reshape(x.shape[0], self.spectrum.size)

    def _levels(self, schedule: Schedule, t: Time, x: Tensor) -> tuple[Coefficient, Coefficient]:
        return schedule.coefficients(t, x)

    @classmethod
    def _of(cls, weights: Tensor, means: Tensor, spectrum: Spectrum) -> GaussianMixture:
        """Of parts that are known to be valid, without decomposing anything again."""
        new = cls.__new__(cls)
        Components.__init__(new, weights, means, spectrum)
        return new

    def __repr__(self) -> str:
        return f"{type(self).__name__}(components={self.components}, shape={self.shape})"

    def to(self, device: torch.device | str) -> GaussianMixture:
        """The same truth on another device (one that has float64)."""
        return self._of(self.weights.to(device), self.means.to(device), self.spectrum.to(device))

    # --- the data themselves ------------------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """E[x_0], (*shape)."""
        return torch.tensordot(self.weights, self.means, dims=1)

    @property
    def variance(self) -> Tensor:
        """The variance of every coordinate of x_0, (*shape)."""
        within = self.spectrum.diagonal(self.spectrum.values.unsqueeze(1)).squeeze(1)
        spread = (self._flat_means - self.mean.reshape(-1)) ** 2
        return (self.weights.view(-1, 1) * (within + spread)).sum(0).view(self.shape)

    @property
    def covariance(self) -> Tensor:
        """Cov[x_0] of the flattened sample, (d, d)."""
        centred = self._flat_means - self.mean.reshape(-1)
        total = (self.weights.view(-1, 1) * centred).T @ centred
        for k, weight in enumerate(self.weights):
            total += weight * self.spectrum.matrix(k, self.spectrum.values[k])
        return total

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws samples and says where each came from.

        Returns:
            x: (n, *shape) float64; component: (n,) int64.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}.")
        component = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator).to(self.device)
        noise = torch.randn(n, self.spectrum.size, dtype=torch.float64, generator=generator).to(self.device)
        x = self._transform(noise, component, self.spectrum.values.sqrt()[component])
        return (x + self._flat_means[component]).view(n, *self.shape), component

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent samples, (n, *shape) float64."""
        return self.draw(n, generator)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats.

        Args:
            x: (batch, *shape).

        Returns:
            (batch,) float64.

        Raises:
            ValueError: if a component is singular: there is no density without noise.
        """
        if self.spectrum.singular:
            raise ValueError(
                "This truth has a singular covariance and so no density; ask log_prob_t at a time with noise."
            )
        return torch.logsumexp(self.log_joint(self._flat(x), 1.0, 0.0), 0)

    # --- at time t ----------------------------------------------------------------------------------------------------

    def marginal(self, schedule: Schedule, t: float) -> GaussianMixture:
        """The law of x_t, a truth of the same kind: means alpha mu_k, covariances alpha^2 S_k + sigma^2 I."""
        alpha, sigma = schedule.at(float(t))
        return self._of(self.weights, alpha * self.means, self.spectrum.noised(alpha, sigma))

    def log_prob_t(self, x_t: Tensor, schedule: Schedule, t: Time) -> Tensor:
        """log p_t(x_t) in nats.

        Args:
            x_t: (batch, *shape).
            t: one time, or one for every row (batch,).

        Returns:
            (batch,) float64.
        """
        x = self._flat(x_t)
        return torch.logsumexp(self.log_joint(x, *self._levels(schedule, t, x)), 0)

    def log_ratio(self, other: GaussianMixture, x_t: Tensor, schedule: Schedule, t: Time) -> Tensor:
        """log p_t(x_t) - log q_t(x_t) against another truth q, (batch,): what an optimal discriminator's logit is."""
        return self.log_prob_t(x_t, schedule, t) - other.log_prob_t(x_t, schedule, t)

    def responsibilities(self, x_t: Tensor, schedule: Schedule, t: Time) -> Tensor:
        """P(component | x_t), (batch, K)."""
        x = self._flat(x_t)
        return torch.softmax(self.log_joint(x, *self._levels(schedule, t, x)), 0).T

    def score(self, x_t: Tensor, schedule: Schedule, t: Time) -> Tensor:
        """grad log p_t(x_t), (batch, *shape)."""
        x = self._flat(x_t)
        alpha, sigma = self._levels(schedule, t, x)
        return (self.answer(x, alpha, sigma).eps / -sigma).view(x_t.shape)

    def posterior_mean(self, x_t: Tensor, schedule: Schedule, t: Time) -> Tensor:
        """E[x_0 | x_t], (batch, *shape)."""
        x = self._flat(x_t)
        return self.answer(x, *self._levels(schedule, t, x)).mean.view(x_t.shape)

    def posterior_variance(self, x_t: Tensor, schedule: Schedule, t: Time) -> Tensor:
        """The diagonal of Cov[x_0 | x_t], (batch, *shape)."""
        x = self._flat(x_t)
        var = self.answer(x, *self._levels(schedule, t, x), variance=True).var
        assert var is not None
        return var.view(x_t.shape)

    def posterior_covariance(self, x_t: Tensor, schedule: Schedule, t: Time) -> Tensor:
        """Cov[x_0 | x_t] of the flattened sample, (batch, d, d)."""
        x = self._flat(x_t)
        alpha, sigma = self._levels(schedule, t, x)
        weights = torch.softmax(self.log_joint(x, alpha, sigma), 0)
        mean = self.answer(x, alpha, sigma).mean
        total = x.new_zeros(x.shape[0], x.shape[1], x.shape[1])
        for which, y, v in self.chunks(x, alpha, sigma):
            w = self.spectrum.values[which].unsqueeze(1)
            centred = self.spectrum.rotate_back(alpha * w / v * y + self._centres[which], which) - mean
            total += torch.einsum("kb,kbi,kbj->bij", weights[which], centred, centred)
            within = (w * sigma**2 / v).expand(-1, v.shape[1], -1)
            for i, k in enumerate(range(self.components)[which]):
                total += weights[k].view(-1, 1, 1) * self.spectrum.matrix(k, within[i])
        return total

    def sample_posterior(self, x_t: Tensor, schedule: Schedule, t: Time, generator: torch.Generator) -> Tensor:
        """One draw of x_0 given every x_t, (batch, *shape)."""
        x = self._flat(x_t)
        alpha, sigma = self._levels(schedule, t, x)
        weights = torch.softmax(self.log_joint(x, alpha, sigma), 0).T
        component = torch.multinomial(weights.cpu(), 1, generator=generator)[:, 0].to(self.device)
        noise = torch.randn(x.shape, dtype=torch.float64, generator=generator).to(self.device)
        w = self.spectrum.values[component]
        v = floored(alpha**2 * w + sigma**2)
        centres = self._centres[component, 0]
        y = self._into_eigenvectors(x, component) - alpha * centres
        coordinates = centres + alpha * w / v * y + torch.sqrt(w / v) * sigma * noise
        return self._transform(coordinates, component, 1.0).view(x_t.shape)

    def kl(self, other: GaussianMixture, generator: torch.Generator | None = None, n: int = 100_000) -> Divergence:
        """KL(self || other) in nats by Monte Carlo over `n` samples, with its standard error.

        For the divergence at time t take the marginals: ``p.marginal(schedule, t).kl(q.marginal(schedule, t), generator)``.
        """
        if generator is None:
            raise ValueError("The divergence of mixtures is estimated by sampling: give kl a torch.Generator.")
        if self.shape != other.shape:
            raise ValueError(f"The two truths have samples of shape {self.shape} and {other.shape}; they must agree.")
        total, squares, left = 0.0, 0.0, n
        rows = max(1, min(n, 4_000_000 // self.spectrum.size))
        while left > 0:
            x = self.sample(min(rows, left), generator)
            gap = self.log_prob(x) - other.log_prob(x)
            total, squares, left = total + gap.sum().item(), squares + (gap**2).sum().item(), left - len(x)
        mean = total / n
        return Divergence(mean, math.sqrt(max(squares / n - mean**2, 0.0) / max(n - 1, 1)))

    def flow(self, x: Tensor, schedule: Schedule, start: float, end: float) -> Tensor:
        """The exact probability-flow map from time `start` to time `end` (either direction), (batch, *shape) float64.

        Closed form for one component, else integrated to an error near 1e-12 (see :mod:`trueward.truth.flow`).
        """
        from trueward.truth.flow import probability_flow

        return probability_flow(self, x, schedule, start, end)

    def denoiser(
        self, schedule: Schedule, covariance: str = "none", classes: Tensor | Sequence[int] | None = None
    ) -> TruthDenoiser:
        """This truth as a model; see :class:`~trueward.truth.denoiser.TruthDenoiser`."""
        from trueward.truth.denoiser import TruthDenoiser

        return TruthDenoiser(self, schedule, covariance=covariance, classes=classes)


def _float64(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)
