r"""The contract of a critic: a time-dependent log density ratio,

.. math:: \ell(x, t) \approx \log q_t(x) / p_t(x),

between two laws noised by the same forward process: real and generated data (Discriminator Guidance, DiffRS), or target and
biased data (TIW-DSM). A ratio is a property of the critic, not of the method that uses it.

A critic lives on its own schedule. Because both densities carry the same Jacobian, the ratio does not depend on the scale of
x: asked under another schedule, at factors alpha and sigma, it is evaluated at its own time of equal SNR and at
alpha' x / alpha. Levels beyond those it was trained on (the data themselves, say) are read at its nearest one.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trueward.schedules import Schedule, Time, as_time


@dataclass
class Tally:
    """What critics were asked inside :func:`tallied`.

    Attributes:
        rows: samples they judged.
        gradients: how many of these with the gradient.
    """

    rows: int = 0
    gradients: int = 0


_tally: ContextVar[Tally | None] = ContextVar("tally", default=None)


@contextlib.contextmanager
def tallied() -> Iterator[Tally]:
    """Counts what critics are asked inside, in this thread; the cost beside that of the network."""
    tally = Tally()
    token = _tally.set(tally)
    try:
        yield tally
    finally:
        _tally.reset(token)


class Critic(nn.Module):
    """An estimate of log q_t / p_t.

    Attributes:
        schedule: the forward process it was made on.
        shape: shape of one sample, or None if it takes any.
        num_classes: number of classes of ``class_labels``, or None for an unconditional critic.
    """

    citation: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, schedule: Schedule, *, shape: tuple[int, ...] | None = None, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.schedule, self.shape, self.num_classes = schedule, shape, num_classes
        self._highest = schedule.log_snr(schedule.t_min).item()
        self._lowest = schedule.log_snr(schedule.t_max).item()

    @abstractmethod
    def logit(self, x_t: Float[Tensor, "batch *shape"], t: Tensor, **condition: Any) -> Float[Tensor, " batch"]:
        """The log ratio on the critic's own schedule: x_t (batch, *shape), t (batch,)."""

    def log_ratio(
        self, x_t: Float[Tensor, "batch *shape"], t: Time, *, schedule: Schedule | None = None, **condition: Any
    ) -> Float[Tensor, " batch"]:
        """log q_t(x_t) / p_t(x_t) of every row.

        Args:
            x_t: (batch, *shape), in the units of `schedule`.
            t: one time, or one per row.
            schedule: the schedule that `x_t` and `t` belong to; default the critic's own.
            **condition: e.g. ``class_labels`` (batch,) for a conditional critic.
        """
        schedule = self.schedule if schedule is None else schedule
        t = as_time(t).expand(x_t.shape[0])
        return self.log_ratio_at(x_t, schedule.alpha(t), schedule.sigma(t), **condition)

    def log_ratio_at(self, x: Tensor, alpha: Tensor, sigma: Tensor, **condition: Any) -> Float[Tensor, " batch"]:
        """The log ratio of x = alpha x_0 + sigma eps, for whatever alpha and sigma >= 0, both (batch,) float64."""
        return self.log_ratio_placed(x, *self.place(alpha, sigma), **condition)

    def place(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Where x = alpha x_0 + sigma eps stands on the critic's schedule: its time, and the factor that takes x there.

        `alpha`, `sigma`: (batch,) float64, and so is what is returned. A table of it spares a sampler the work.
        """
        log_snr = 2.0 * (torch.log(alpha) - torch.log(sigma))
        t = self.schedule.time_of_log_snr(log_snr.clamp(self._lowest, self._highest))
        t = t.clamp(self.schedule.t_min, self.schedule.t_max)
        return t, self.schedule.alpha(t) / alpha

    def log_ratio_placed(self, x: Tensor, t: Tensor, scale: Tensor, **condition: Any) -> Float[Tensor, " batch"]:
        """The log ratio of x at its :meth:`place`."""
        if self.shape is not None and tuple(x.shape[1:]) != tuple(self.shape):
            raise ValueError(f"This critic takes samples of shape {self.shape}, got {tuple(x.shape[1:])}.")
        tally = _tally.get()
        if tally is not None:
            tally.rows += x.shape[0]
            tally.gradients += x.shape[0] if x.requires_grad else 0
        scale = scale.to(x.device, x.dtype).view((-1,) + (1,) * (x.ndim - 1))
        logit = self.logit(x * scale, t, **self._condition(condition))
        if logit.shape == (x.shape[0], 1):
            logit = logit[:, 0]
        if logit.shape != x.shape[:1]:
            raise ValueError(
                f"A critic answers one logit per row, ({x.shape[0]},), but this one gave {tuple(logit.shape)}."
            )
        return logit

    def _condition(self, condition: dict[str, Any]) -> dict[str, Any]:
        if self.num_classes is None:
            return {k: v for k, v in condition.items() if k != "class_labels"}
        labels = condition.get("class_labels")
        if labels is None:
            raise ValueError("This critic is class-conditional: give class_labels.")
        if bool(((labels < 0) | (labels >= self.num_classes)).any()):
            raise ValueError(
                f"This critic is class-conditional and knows no 'no class': class_labels must lie in 0 ... "
                f"{self.num_classes - 1}."
            )
        return condition

    def gradient(
        self, x_t: Tensor, t: Time, *, schedule: Schedule | None = None, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """(grad_x log ratio, log ratio) in the units of `schedule`: (batch, *shape) and (batch,).

        The rows are independent, so the gradient of the sum holds the gradient of each.

        Raises:
            ValueError: if the critic is not differentiable in x_t.
        """
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            logit = self.log_ratio(x, t, schedule=schedule, **condition)
            if not logit.requires_grad:
                raise ValueError(
                    "The critic's answer does not depend differentiably on x_t: is a part of it under no_grad?"
                )
            (gradient,) = torch.autograd.grad(logit.sum(), x)
        return gradient, logit.detach()
