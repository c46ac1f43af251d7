r"""Learned covariances: a diagonal for every state, from a small head on the frozen model (Bao et al. 2022b).

    SN     V = (sigma_t / alpha_t)^2 (h - eps_theta^2),   h = E[eps^2 | x_t]                 diag Cov[x_0 | x_t] for an exact mean
    NPR    R = (sigma_t / alpha_t)^2 g,                   g = E[(eps - eps_theta)^2 | x_t]   = E[(x_0 - x0_hat)^2 | x_t], whatever the mean

The head predicts on the eps scale, where targets are of order one at every level, and is multiplied afterwards. Then, entry by
entry, the value is clipped to [0, ((b - a) / 2)^2] for data in [a, b]; with `average` it is first averaged over the dimensions
of each sample; with `floor` it is kept above that share of what is expected at the level, R(t) from a table, which costs
samples nothing and repairs the likelihood bound where a head answers zero.

The model itself is left as it is: its parameters take no gradient and it stays in evaluation mode while the head is fitted
(``train(NPRCovariance(model), MomentMatching(), data)``), so its weights and answers are the same bits before and after.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trueward.covariance.analytic import GammaTable, Range
from trueward.covariance.heads import CovarianceHead, MatrixHead
from trueward.covariance.trunk import INPUTS, Trunk
from trueward.denoisers import Denoiser, Guided, Posterior
from trueward.full_covariance import FullCovariance
from trueward.schedules import Time

LARGEST_FULL = 256


class LearnedCovariance(Guided):
    """A denoiser whose `Posterior.var` comes from a head; use a subclass.

    Args:
        inner: the model; its parameters are frozen.
        head: any module called as ``head(features, log_snr)`` that answers in the shape of x; default: a
            :class:`~trueward.covariance.heads.CovarianceHead` on the features.
        feature_layer: where the features are, see :mod:`trueward.covariance.trunk`.
        mode: simple or complex, of the default head.
        average: one variance per sample instead of one per entry.
        floor: share of the expected residual below which no variance falls (0.05 is good for likelihoods); needs `table`.
        table: what :func:`~trueward.covariance.estimate_gamma` measured, for the floor.
        data_range: bounds of the data; "inner" takes the denoiser's, None means unbounded.
        backbone_eval: keep the model in evaluation mode while the head is trained (False repeats the official code, whose
            dropout stayed on).
    """

    covariance_kind: ClassVar[str]
    initial: ClassVar[float] = 0.0
    citation: ClassVar[tuple[str, ...]] = ("bao2022estimating",)

    def __init__(
        self,
        inner: Denoiser,
        head: nn.Module | None = None,
        *,
        feature_layer: str = "auto",
        mode: str | None = None,
        average: bool = False,
        floor: float = 0.0,
        table: GammaTable | None = None,
        data_range: Range | str = "inner",
        backbone_eval: bool = True,
    ) -> None:
        super().__init__(inner)
        if not 0.0 <= floor < 1.0:
            raise ValueError(f"floor is a share of the expected variance and must lie in [0, 1), got {floor}.")
        if floor > 0 and table is None:
            raise ValueError(
                f"floor={floor} needs the table of expected residuals: table=estimate_gamma(denoiser, data)."
            )
        if table is not None:
            table.check(inner.schedule)
        self.average, self.floor, self.table, self.backbone_eval = average, floor, table, backbone_eval
        self.bounds: Range = inner.data_range if isinstance(data_range, str) else data_range
        self.trunk = Trunk.of(inner, feature_layer)
        self.feature_layer = feature_layer
        inner.requires_grad_(False)
        self.head = self._default_head(mode) if head is None else head
        self.head.to(inner.device, inner.dtype)
        self.train(self.training)

    def train(self, mode: bool = True) -> LearnedCovariance:
        super().train(mode)
        if self.backbone_eval:
            self.inner.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    def _probe(self) -> Tensor:
        """The features of one sample of zeros."""
        if self.shape is None:
            raise ValueError("The model does not say the shape of its samples: give a head, or a denoiser with shape=.")
        x = torch.zeros(1, *self.shape, device=self.inner.device, dtype=self.inner.dtype)
        condition = (
            {} if self.num_classes is None else {"class_labels": torch.full((1,), self.num_classes, device=x.device)}
        )
        training = self.inner.training
        self.inner.eval()
        with torch.no_grad():
            features = self.trunk(self.inner, x, self.schedule.t_max, condition)[1]
        self.inner.train(training)
        return features

    def _default_head(self, mode: str | None) -> nn.Module:
        features, shape = self._probe(), self.shape or ()
        if features.ndim == 2 and len(shape) > 1:  # images that the network holds as one vector
            return CovarianceHead(features.shape[1], math.prod(shape), 0, mode or "simple", self.initial, shape=shape)
        if features.shape[2:] != shape[1:]:
            raise ValueError(
                f"The features have the shape {tuple(features.shape[1:])}, the samples {shape}; name a feature_layer of the "
                "samples' size, or give a head of your own."
            )
        mode = mode if mode is not None else "complex" if self.trunk.path == INPUTS else "simple"
        return CovarianceHead(features.shape[1], shape[0], len(shape) - 1, mode, self.initial)

    def predict(self, x_t: Tensor, t: Time, **condition: Any) -> tuple[Posterior, Tensor]:
        """(posterior, what the head says), in one call of the model; the model's part carries no gradient.

        Raises:
            ValueError: a head that answers another shape, or not finitely.
        """
        with torch.no_grad():
            posterior, features = self.trunk(self.inner, x_t, t, condition)
        weight = next(self.head.parameters(), features)
        log_snr = self.schedule.log_snr(t).to(x_t.device, weight.dtype)
        h = self.head(
            features.detach().to(weight.dtype), log_snr.expand(x_t.shape[0]) if log_snr.ndim == 0 else log_snr
        )
        return posterior, h if h.dtype == torch.float64 else h.to(torch.promote_types(x_t.dtype, torch.float32))

    def target(self, eps: Tensor, posterior: Posterior) -> Tensor:
        """What the head is fitted to, given the noise that was there; held constant."""
        raise NotImplementedError

    def on_eps_scale(self, posterior: Posterior, h: Tensor) -> Tensor:
        """The covariance in units of (sigma / alpha)^2."""
        raise NotImplementedError

    @property
    def cap(self) -> float | None:
        """((b - a) / 2)^2, or None for unbounded data."""
        return None if self.bounds is None else (0.5 * (self.bounds[1] - self.bounds[0])) ** 2

    def least(self, posterior: Posterior, t: Time) -> Tensor | float:
        """floor R(t)."""
        assert self.table is not None
        times = t.detach().cpu().double().numpy() if isinstance(t, Tensor) else t
        found = torch.as_tensor(self.table.at(times, "analytic-residual") * self.floor)
        x = posterior.x_t
        shaped = found.to(x.device, x.dtype).view((-1,) + (1,) * (x.ndim - 1)) if found.ndim else found.item()
        return shaped * (posterior.sigma / posterior.alpha) ** 2

    def raw(self, x_t: Tensor, t: Time, **condition: Any) -> tuple[Posterior, Tensor]:
        """(posterior, covariance before any clipping, (batch, *shape))."""
        posterior, h = self.predict(x_t, t, **condition)
        if h.shape != x_t.shape:
            raise ValueError(f"The head answered shape {tuple(h.shape)} to samples of shape {tuple(x_t.shape)}.")
        return posterior, self.on_eps_scale(posterior, h) * (posterior.sigma / posterior.alpha) ** 2

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        posterior, var = self.raw(x_t, t, **condition)
        if self.average:
            var = var.flatten(1).mean(1).view((-1,) + (1,) * (x_t.ndim - 1))
        var = var.clamp(min=0.0, max=self.cap)
        if self.floor > 0:
            least = self.least(posterior, t)
            var = torch.maximum(var, least) if isinstance(least, Tensor) else var.clamp(min=least)
        return posterior.replace(var=var)


class SNCovariance(LearnedCovariance):
    """SN-DPM: the second moment of the noise; the best samples in few steps, for a good mean (Bao et al. 2022b, eq. 9)."""

    covariance_kind = "sn"
    initial = 1.0

    def target(self, eps: Tensor, posterior: Posterior) -> Tensor:
        return eps.square()

    def on_eps_scale(self, posterior: Posterior, h: Tensor) -> Tensor:
        return h - posterior.eps.to(h.dtype).square()


class NPRCovariance(LearnedCovariance):
    """NPR-DPM: the squared residual of the noise prediction; the best bound, whatever the mean (Bao et al. 2022b, eq. 14)."""

    covariance_kind = "npr"

    def target(self, eps: Tensor, posterior: Posterior) -> Tensor:
        return (eps - posterior.eps.detach()).square()

    def on_eps_scale(self, posterior: Posterior, h: Tensor) -> Tensor:
        return h


class NPRFullCovariance(LearnedCovariance):
    """The full matrix E[(eps - eps_theta)(eps - eps_theta)^T | x_t] for data of at most 256 dimensions.

    The optimal covariance of a reverse step given its mean; eigenvalues are clipped to [0, ((b - a) / 2)^2 d] for bounded data
    (the largest variance a direction can have).
    """

    covariance_kind = "npr-full"

    def _default_head(self, mode: str | None) -> nn.Module:
        features = self._probe().flatten(1)
        dimensions = int(torch.tensor(self.shape).prod())
        if dimensions > LARGEST_FULL:
            raise ValueError(
                f"A full covariance serves up to {LARGEST_FULL} dimensions, these samples have {dimensions}."
            )
        return MatrixHead(features.shape[1], dimensions)

    def target(self, eps: Tensor, posterior: Posterior) -> Tensor:
        residual = (eps - posterior.eps.detach()).flatten(1)
        return residual.unsqueeze(2) * residual.unsqueeze(1)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        posterior, h = self.predict(x_t, t, **condition)
        dimensions = x_t[0].numel()
        if h.shape != (x_t.shape[0], dimensions, dimensions):
            raise ValueError(
                f"The head answered shape {tuple(h.shape)}; it must be (batch, {dimensions}, {dimensions})."
            )
        var = FullCovariance.of(h) * ((posterior.sigma / posterior.alpha) ** 2)
        var = var.clamp(min=0.0, max=None if self.cap is None else self.cap * dimensions)
        if self.floor > 0:
            var = var.clamp(min=self.least(posterior, t))
        return posterior.replace(var=var)  # type: ignore[arg-type]
