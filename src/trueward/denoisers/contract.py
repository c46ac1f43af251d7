r"""The contract of a denoiser, ``denoiser(x_t, t, **condition) -> Posterior``, and a denoiser under another schedule."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trueward.denoisers.posterior import Posterior
from trueward.schedules import DiscreteSchedule, Schedule, Time


class Denoiser(nn.Module):
    """A model of x_0 given x_t under a schedule.

    Attributes:
        schedule: the forward process it was made for.
        shape: shape of one sample, e.g. (3, 32, 32), or None if it takes any.
        data_range: (low, high) of the data, or None for unbounded data.
        num_classes: number of classes of ``class_labels``, or None; the label `num_classes` then means "no class".
    """

    citation: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        schedule: Schedule,
        *,
        shape: Sequence[int] | None = None,
        data_range: tuple[float, float] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise ValueError(f"schedule must be a Schedule, got {type(schedule).__name__}.")
        schedule.validate()
        self.schedule = schedule
        self.shape = None if shape is None else tuple(shape)
        self.data_range = data_range
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, x_t: Float[Tensor, "batch *shape"], t: Time, **condition: Any) -> Posterior:
        """The posterior of x_0.

        Args:
            x_t: (batch, *shape), in the units of the process: alpha(t) x_0 + sigma(t) eps.
            t: one time, or one time per row (batch,).
            **condition: what the network is conditioned on, row by row (``class_labels``: (batch,) int64).
        """

    @property
    def device(self) -> torch.device:
        """Where the parameters are (the CPU for a denoiser without any)."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which to sample: float32, or float64 for a float64 model; half-precision models keep x in float32."""
        parameter = next(self.parameters(), None)
        return torch.float64 if parameter is not None and parameter.dtype == torch.float64 else torch.float32

    def on(self, schedule: Schedule) -> Denoiser:
        """The same model under another schedule (the two processes agree at equal SNR, up to scale)."""
        return Rescheduled(self, schedule)

    def at_stage(self, stage: int) -> Denoiser:
        """The model as it is asked in evaluation number `stage` = 0, 1, ... of one step of a sampler.

        A step of order two or more asks several times. A wrapper that treats these evaluations differently (Discriminator
        Guidance has a weight for the first and one for the others) overrides this; everything else passes the question on.
        """
        inner = getattr(self, "inner", None)
        staged = inner.at_stage(stage) if isinstance(inner, Denoiser) else inner
        if staged is inner:
            return self
        other = copy.copy(self)
        other._modules = dict(self._modules)  # the container is another, what it holds is shared
        other.inner = staged  # type: ignore[assignment]
        return other


class Rescheduled(Denoiser):
    """A denoiser asked under another schedule than its own.

    Both processes have the same posterior at equal SNR: x_t / alpha is the same noisy datum. So the inner model is asked at
    the time of equal log-SNR, with x_t scaled by the ratio of the alphas.
    """

    def __init__(self, inner: Denoiser, schedule: Schedule) -> None:
        super().__init__(schedule, shape=inner.shape, data_range=inner.data_range, num_classes=inner.num_classes)
        self.inner = inner

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    def inner_time(self, t: Time) -> Tensor:
        """The inner model's time of equal log-SNR, kept inside the range the inner model knows."""
        inner = self.inner.schedule
        time = inner.time_of_log_snr(self.schedule.log_snr(t))
        return time.clamp(min=inner.t_min) if isinstance(inner, DiscreteSchedule) else time

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        inner_t = self.inner_time(t)
        inner_alpha, _ = self.inner.schedule.coefficients(inner_t, x_t)
        posterior = self.inner(x_t * (inner_alpha / alpha), inner_t, **condition)
        return Posterior(x_t, alpha, sigma, mean=posterior.mean, var=posterior.var)
