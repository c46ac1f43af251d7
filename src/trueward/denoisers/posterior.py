r"""What is known about x_0 given x_t.

With x_t = alpha x_0 + sigma eps and an exact model,

    mean  = E[x_0 | x_t]
    eps   = (x_t - alpha mean) / sigma            = E[eps | x_t]
    score = -eps / sigma                          = grad log p_t(x_t)
    v     = (alpha eps - sigma mean)              (the velocity of Salimans and Ho 2022)

so one prediction gives all the others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Coefficient = float | Tensor


class Posterior:
    """x_0 given x_t: its mean, where known its covariance, and the equivalent views `eps`, `score`, `v`.

    Made from whichever of mean, eps or v the model predicts; the others are computed when asked for and remembered.

    Attributes:
        x_t: (batch, *shape), the noisy data.
        alpha, sigma: floats, or tensors (batch, 1, ..., 1).
        var: covariance of x_0 given x_t where known: a float or a tensor that broadcasts against `mean` (isotropic or
            diagonal), in squared data units; else None.
        native: "mean", "eps" or "v", the view it was made from, which has lost no digits.
    """

    __slots__ = ("_eps", "_mean", "_v", "alpha", "native", "sigma", "var", "x_t")

    def __init__(
        self,
        x_t: Tensor,
        alpha: Coefficient,
        sigma: Coefficient,
        *,
        mean: Tensor | None = None,
        eps: Tensor | None = None,
        v: Tensor | None = None,
        var: Coefficient | None = None,
    ) -> None:
        self.x_t, self.alpha, self.sigma, self.var = x_t, alpha, sigma, var
        self._mean, self._eps, self._v = mean, eps, v
        self.native = "mean" if mean is not None else "eps" if eps is not None else "v"

    @property
    def mean(self) -> Tensor:
        """E[x_0 | x_t], (batch, *shape)."""
        if self._mean is None:
            if self._eps is not None:
                self._mean = linear(1.0 / self.alpha, self.x_t, -self.sigma / self.alpha, self._eps)
            else:
                norm = self.alpha**2 + self.sigma**2
                self._mean = linear(self.alpha / norm, self.x_t, -self.sigma / norm, self._v)
        return self._mean

    @property
    def eps(self) -> Tensor:
        """E[eps | x_t] = (x_t - alpha mean) / sigma."""
        if self._eps is None:
            if self._mean is not None:
                self._eps = linear(1.0 / self.sigma, self.x_t, -self.alpha / self.sigma, self._mean)
            else:
                norm = self.alpha**2 + self.sigma**2
                self._eps = linear(self.sigma / norm, self.x_t, self.alpha / norm, self._v)
        return self._eps

    def scaled_mean(self, out: Callable[[], Tensor]) -> tuple[Coefficient, Tensor]:
        """(c, y) with ``mean == c * y``, without allocating: for samplers, which go on to a linear combination anyway.

        Where the model predicts eps, y = x_t - sigma eps = alpha mean takes one pass, into the buffer that `out` makes.
        """
        if self._mean is None and self._eps is not None:
            return 1.0 / self.alpha, _sum(self.x_t, -self.sigma, self._eps, out())
        if self._mean is None:
            norm = self.alpha**2 + self.sigma**2
            self._mean = linear(self.alpha / norm, self.x_t, -self.sigma / norm, self._v, out())
        return 1.0, self._mean

    def scaled_eps(self, out: Callable[[], Tensor]) -> tuple[Coefficient, Tensor]:
        """(c, y) with ``eps == c * y``; see :meth:`scaled_mean`. From the mean, y = x_t - alpha mean = sigma eps."""
        if self._eps is None and self._mean is not None:
            return 1.0 / self.sigma, _sum(self.x_t, -self.alpha, self._mean, out())
        if self._eps is None:
            norm = self.alpha**2 + self.sigma**2
            self._eps = linear(self.sigma / norm, self.x_t, self.alpha / norm, self._v, out())
        return 1.0, self._eps

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma mean."""
        if self._v is None:
            self._v = linear(self.alpha, self.eps, -self.sigma, self.mean)
        return self._v

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t) = -eps / sigma."""
        return self.eps * (-1.0 / self.sigma)

    def replace(
        self, *, mean: Tensor | None = None, eps: Tensor | None = None, var: Coefficient | None = None
    ) -> Posterior:
        """The same x_t with another mean (or eps) or covariance; what is not given stays."""
        if mean is None and eps is None:
            return Posterior(self.x_t, self.alpha, self.sigma, mean=self._mean, eps=self._eps, v=self._v, var=var)
        return Posterior(self.x_t, self.alpha, self.sigma, mean=mean, eps=eps, var=self.var if var is None else var)


def _sum(x: Tensor, b: Coefficient, y: Tensor, out: Tensor | None) -> Tensor:
    """x + b y in one pass."""
    return torch.addcmul(x, y, b, out=out) if isinstance(b, Tensor) else torch.add(x, y, alpha=b, out=out)


def linear(a: Coefficient, x: Tensor, b: Coefficient, y: Tensor | None, out: Tensor | None = None) -> Tensor:
    """a x + b y in two passes."""
    assert y is not None
    result = torch.mul(x, a, out=out)
    if isinstance(b, Tensor):
        return torch.addcmul(result, y, b, out=out)
    return result + b * y if result.requires_grad else result.add_(y, alpha=b)
