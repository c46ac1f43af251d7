r"""Networks as denoisers: one class for each quantity that a network may be trained to predict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trueward.denoisers.contract import Denoiser
from trueward.denoisers.posterior import Posterior, linear
from trueward.naming import look_up
from trueward.schedules import Schedule, Time, as_time


class NetworkDenoiser(Denoiser):
    """A denoiser around an ``nn.Module`` called as ``network(x, label, **condition)`` that answers in the shape of x.

    A network that answers with twice the channels (learned variance) is read by its first half. The label is
    `schedule.label(t)` (float32, (batch,)) unless `label` says otherwise.

    Args:
        network: any module.
        schedule: the forward process it was trained on.
        label: maps times (batch,) float64 to what the network expects, e.g. ``lambda t: 1000 * t``.
        shape, data_range, num_classes: see :class:`Denoiser`.
    """

    prediction: ClassVar[str]

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        *,
        label: Callable[[Tensor], Tensor] | None = None,
        shape: Sequence[int] | None = None,
        data_range: tuple[float, float] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(schedule, shape=shape, data_range=data_range, num_classes=num_classes)
        self.network = network
        self._label = label

    def label(self, t: Time) -> Tensor:
        """The network's time input for the times `t`."""
        return self.schedule.label(t) if self._label is None else self._label(as_time(t))

    def call_network(self, x: Tensor, t: Time, condition: Mapping[str, Any]) -> Tensor:
        """The raw answer of the network, checked for its shape, in the dtype of `x`."""
        parameter = next(self.network.parameters(), None)
        dtype = x.dtype if parameter is None or not parameter.is_floating_point() else parameter.dtype
        # the label keeps float32 in a half-precision network: a noise level has more digits than that
        label = self.label(t).to(x.device, torch.float64 if dtype == torch.float64 else torch.float32)
        label = label.expand(x.shape[0]) if label.ndim == 0 else label
        answer = self.network(x.to(dtype), label, **condition)
        if not isinstance(answer, Tensor):  # diffusers-style outputs hold the tensor in `.sample`
            answer = getattr(answer, "sample", None) if getattr(answer, "sample", None) is not None else answer[0]
        if answer.shape != x.shape:
            if answer.ndim == x.ndim and answer.shape[1] == 2 * x.shape[1] and answer.shape[2:] == x.shape[2:]:
                answer = answer[:, : x.shape[1]]
            else:
                raise ValueError(
                    f"The network answered shape {tuple(answer.shape)} to an input of shape {tuple(x.shape)}; the two must agree."
                )
        return answer.to(x.dtype)


class EpsDenoiser(NetworkDenoiser):
    """The network predicts the noise eps (Ho et al. 2020)."""

    prediction = "eps"
    citation: ClassVar[tuple[str, ...]] = ("ho2020denoising",)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, eps=self.call_network(x_t, t, condition))


class DataDenoiser(NetworkDenoiser):
    """The network predicts the data x_0."""

    prediction = "x0"

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, mean=self.call_network(x_t, t, condition))


class VDenoiser(NetworkDenoiser):
    """The network predicts v = alpha eps - sigma x_0 (Salimans and Ho 2022)."""

    prediction = "v"
    citation: ClassVar[tuple[str, ...]] = ("salimans2022progressive",)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, v=self.call_network(x_t, t, condition))


class ScoreDenoiser(NetworkDenoiser):
    """The network predicts the score grad log p_t(x_t) (Song et al. 2021)."""

    prediction = "score"
    citation: ClassVar[tuple[str, ...]] = ("song2021score",)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, eps=self.call_network(x_t, t, condition) * -sigma)


class FlowDenoiser(NetworkDenoiser):
    """The network predicts the velocity u = eps - x_0 of flow matching (Lipman et al. 2023; Liu et al. 2023).

    On x_t = alpha x_0 + sigma eps that is (alpha + sigma) mean = x_t - sigma u and (alpha + sigma) eps = x_t + alpha u, or

        v = ((alpha - sigma) x_t + (alpha^2 + sigma^2) u) / (alpha + sigma)

    which keeps the digits of both at either end.
    """

    prediction = "flow"
    citation: ClassVar[tuple[str, ...]] = ("lipman2023flow", "liu2023flow")

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        total = alpha + sigma
        u = self.call_network(x_t, t, condition)
        v = linear((alpha - sigma) / total, x_t, (alpha**2 + sigma**2) / total, u)
        return Posterior(x_t, alpha, sigma, v=v)


class EDMDenoiser(NetworkDenoiser):
    r"""The preconditioning of Karras et al. (2022, table 1) on any schedule.

    With y = x_t / alpha and s = sigma / alpha the noise level of y,

        mean = c_skip y + c_out network(c_in y, log(s) / 4)
        c_skip = sd^2 / (s^2 + sd^2),   c_out = s sd / sqrt(s^2 + sd^2),   c_in = 1 / sqrt(s^2 + sd^2)

    where sd is the standard deviation of the data. The network sees only the noise level, so the same weights serve every
    schedule (:meth:`on` swaps it without a wrapper).
    """

    prediction = "edm"
    citation: ClassVar[tuple[str, ...]] = ("karras2022elucidating",)

    def __init__(self, network: nn.Module, schedule: Schedule, *, sigma_data: float = 0.5, **options: Any) -> None:
        super().__init__(network, schedule, **options)
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}.")
        self.sigma_data = sigma_data

    def label(self, t: Time) -> Tensor:
        return -self.schedule.log_snr(t) / 8.0 if self._label is None else self._label(as_time(t))

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        sd = self.sigma_data
        norm = sigma**2 + (alpha * sd) ** 2
        answer = self.call_network(x_t * norm**-0.5, t, condition)
        mean = linear(alpha * sd**2 / norm, x_t, sigma * sd * norm**-0.5, answer)
        return Posterior(x_t, alpha, sigma, mean=mean)

    def on(self, schedule: Schedule) -> EDMDenoiser:
        other = copy.copy(self)
        other._modules = dict(self._modules)  # the network is shared, the container is not
        other.schedule = schedule
        return other


_PREDICTIONS: dict[str, type[NetworkDenoiser]] = {
    cls.prediction: cls for cls in (EpsDenoiser, DataDenoiser, VDenoiser, ScoreDenoiser, FlowDenoiser, EDMDenoiser)
}


def denoiser(network: nn.Module, schedule: Schedule, prediction: str = "eps", **options: Any) -> NetworkDenoiser:
    """Your own network as a denoiser.

    Args:
        network: any module called as ``network(x, label, **condition)``.
        schedule: the forward process it was trained on.
        prediction: what it predicts: eps, x0, v, score, flow (the velocity eps - x_0) or edm (preconditioned).
        **options: see :class:`NetworkDenoiser` and, for edm, :class:`EDMDenoiser`.
    """
    return look_up("prediction", prediction, _PREDICTIONS)(network, schedule, **options)


def prediction_names() -> list[str]:
    """The predictions that :func:`denoiser` knows."""
    return list(_PREDICTIONS)
