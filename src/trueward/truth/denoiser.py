r"""A truth as a model: the denoiser that a perfectly trained network would be.

Class-conditional: components carry classes, and the label c restricts the mixture to its components,
p(x_0 | c) proportional to sum over k in class c of pi_k N(mu_k, S_k); the label `num_classes` keeps the whole mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trueward.denoisers import Denoiser, Posterior
from trueward.naming import check_name
from trueward.schedules import Schedule, Time
from trueward.truth.components import NOTHING
from trueward.truth.mixture import GaussianMixture


class TruthDenoiser(Denoiser):
    """The exact posterior of x_0 under a :class:`~trueward.truth.GaussianMixture` (or Gaussian).

    Computes in float64 and answers in the dtype and on the device of `x_t`; differentiable in `x_t`.

    Args:
        truth: the law of the data.
        schedule: the forward process.
        covariance: what `Posterior.var` holds: none; isotropic, the mean of the diagonal of Cov[x_0 | x_t] for every row,
            (batch, 1, ..., 1); or diagonal, (batch, *shape).
        classes: (K,), the class of every component, 0 ... C-1; None for an unconditional model.
    """

    def __init__(
        self,
        truth: GaussianMixture,
        schedule: Schedule,
        *,
        covariance: str = "none",
        classes: Tensor | Sequence[int] | None = None,
    ) -> None:
        check_name("covariance", covariance, ["none", "isotropic", "diagonal"])
        num_classes = None
        if classes is not None:
            classes = torch.as_tensor(classes, dtype=torch.int64, device=truth.device)
            if classes.shape != (truth.components,):
                raise ValueError(f"classes must be ({truth.components},), got shape {tuple(classes.shape)}.")
            num_classes = int(classes.max()) + 1
            if classes.unique().tolist() != list(range(num_classes)):
                raise ValueError(
                    f"classes must use every label 0 ... {num_classes - 1}, got {classes.unique().tolist()}."
                )
        super().__init__(schedule, shape=truth.shape, num_classes=num_classes)
        self.truth, self.covariance, self.classes = truth, covariance, classes
        if classes is not None:
            assert num_classes is not None
            inside = classes.view(-1, 1) == torch.arange(num_classes, device=truth.device)
            log_weights = truth.weights.log().view(-1, 1).expand(-1, num_classes)
            masked = torch.where(inside, log_weights, torch.full_like(log_weights, NOTHING))
            self._log_weights = torch.cat([masked, truth.weights.log().view(-1, 1)], 1)  # (K, C + 1)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    def forward(self, x_t: Tensor, t: Time, class_labels: Tensor | None = None, **condition: Any) -> Posterior:
        if condition:
            raise ValueError(f"A truth is conditioned on class_labels only, got {', '.join(condition)}.")
        x = self.truth._flat(x_t)
        log_weights = None
        if self.classes is not None and class_labels is not None:
            log_weights = self._log_weights[:, torch.as_tensor(class_labels, device=x.device).expand(x.shape[0])]
        elif class_labels is not None:
            raise ValueError("class_labels were given, but this truth has no classes: say which with classes=.")
        answer = self.truth.answer(
            x, *self.schedule.coefficients(t, x), variance=self.covariance != "none", log_weights=log_weights
        )
        var = answer.var
        if var is not None:
            if self.covariance == "isotropic":
                var = var.mean(1).view((-1,) + (1,) * (x_t.ndim - 1)).to(x_t.device, x_t.dtype)
            else:
                var = var.view(x_t.shape).to(x_t.device, x_t.dtype)
        alpha, sigma = self.schedule.coefficients(t, x_t)
        mean, eps = (value.view(x_t.shape).to(x_t.device, x_t.dtype) for value in (answer.mean, answer.eps))
        return Posterior(x_t, alpha, sigma, mean=mean, eps=eps, var=var)
