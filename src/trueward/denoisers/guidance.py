r"""Denoisers that change another denoiser's answer: classifier-free and classifier guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from trueward.denoisers.contract import Denoiser
from trueward.denoisers.posterior import Posterior
from trueward.schedules import Time


class Guided(Denoiser):
    """Base of wrappers that change another denoiser's answer and share everything else with it."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.schedule, shape=inner.shape, data_range=inner.data_range, num_classes=inner.num_classes)
        self.inner = inner

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype


class ClassifierFreeGuidance(Guided):
    """eps_u + scale (eps_c - eps_u), in one call on the doubled batch [unconditional; conditional] (Ho and Salimans 2022).

    Args:
        inner: a conditional denoiser.
        scale: 1 is the conditional model itself (and then costs one plain call), 0 the unconditional one.
        unconditional: what stands for "no condition", by keyword; default: the label `inner.num_classes`.
    """

    citation: ClassVar[tuple[str, ...]] = ("ho2022classifierfree",)

    def __init__(self, inner: Denoiser, scale: float, unconditional: Mapping[str, Any] | None = None) -> None:
        super().__init__(inner)
        if unconditional is None:
            if inner.num_classes is None:
                raise ValueError(
                    "Say what stands for 'no condition': this denoiser has no num_classes to take it from."
                )
            unconditional = {"class_labels": inner.num_classes}
        self.scale, self.unconditional = float(scale), dict(unconditional)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        if self.scale == 1.0:
            return self.inner(x_t, t, **condition)
        rows = x_t.shape[0]
        both: dict[str, Any] = {}
        for name, value in condition.items():
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows:
                null = torch.as_tensor(self.unconditional.get(name, value), dtype=value.dtype, device=value.device)
                both[name] = torch.cat([null.expand_as(value), value])
            else:
                both[name] = value
        if isinstance(t, Tensor) and t.ndim:
            t = torch.cat([t, t])
        eps_u, eps_c = self.inner(torch.cat([x_t, x_t]), t, **both).eps.chunk(2)
        alpha, sigma = self.schedule.coefficients(t if not (isinstance(t, Tensor) and t.ndim) else t[:rows], x_t)
        return Posterior(x_t, alpha, sigma, eps=torch.lerp(eps_u, eps_c, self.scale))


class ClassifierGuidance(Guided):
    """eps - scale sigma grad_x log p(y | x_t, t) (Dhariwal and Nichol 2021).

    Args:
        inner: any denoiser.
        log_prob: ``log_prob(x_t, t, **condition) -> (batch,)``, the log-probability of the wanted class of each row; not
            logits, whose gradient is another one.
        scale: strength of the guidance; 1 samples from the Bayes posterior.
        takes: keywords of the condition that go to the classifier alone.
    """

    citation: ClassVar[tuple[str, ...]] = ("dhariwal2021diffusion",)

    def __init__(
        self, inner: Denoiser, log_prob: Callable[..., Tensor], scale: float = 1.0, takes: Sequence[str] = ()
    ) -> None:
        super().__init__(inner)
        self.log_prob, self.scale, self.takes = log_prob, float(scale), tuple(takes)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        inner = {name: value for name, value in condition.items() if name not in self.takes}
        posterior = self.inner(x_t, t, **inner)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            log_prob = self.log_prob(x, t, **condition)
            if log_prob.shape != x_t.shape[:1]:
                raise ValueError(
                    f"log_prob must return one log-probability per row, ({x_t.shape[0]},), but returned {tuple(log_prob.shape)}."
                )
            (gradient,) = torch.autograd.grad(log_prob.sum(), x)
        return posterior.replace(eps=posterior.eps - self.scale * posterior.sigma * gradient)
