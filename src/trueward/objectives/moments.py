r"""Fitting the covariance of a frozen model: regression of its moments.

A head h(x_t, t) on the features of the model is fitted by squared error, summed over the dimensions, without a weight:

    SN      || eps^2 - h ||^2                       h -> E[eps^2 | x_t]
    NPR     || (eps - eps_theta(x_t))^2 - h ||^2    h -> E[(eps - eps_theta)^2 | x_t]        (Bao et al. 2022b, section 4)

The denoiser says which: ``denoiser.predict(x_t, t)`` answers with the posterior and h, ``denoiser.target(eps, posterior)`` is
what h should be, held constant (see :mod:`trueward.covariance.learned`). A loss that stays near one per dimension is normal
for SN: eps^2 is noisy given x_t, however good the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trueward.denoisers import Denoiser
from trueward.objectives.objective import Batch, Objective, add_noise
from trueward.objectives.times import DiscreteTimes, TimeSampler, UniformTimes, time_sampler
from trueward.schedules import DiscreteSchedule, Schedule


@dataclass(frozen=True)
class MomentMatching(Objective):
    """The second stage of SN- and NPR-DPM (Bao et al. 2022b).

    Args:
        times: distribution of the training times; default: uniform over the nodes of a table, or over the times.
        label_dropout: probability of hiding a row's class, where the model knows classes.

    Raises:
        ValueError: at the call, if the denoiser has no head to fit.
    """

    times: TimeSampler | str | None = None
    label_dropout: float = 0.1
    citation: ClassVar[tuple[str, ...]] = ("bao2022estimating",)

    def __post_init__(self) -> None:
        if self.times is not None:
            object.__setattr__(self, "times", time_sampler(self.times))
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ValueError(f"label_dropout must lie in [0, 1], got {self.label_dropout}.")

    def times_of(self, schedule: Schedule) -> TimeSampler:
        """The time sampler used on this schedule."""
        if self.times is not None:
            return time_sampler(self.times)
        return DiscreteTimes() if isinstance(schedule, DiscreteSchedule) else UniformTimes()

    def __call__(self, denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
        predict, target = getattr(denoiser, "predict", None), getattr(denoiser, "target", None)
        if predict is None or target is None:
            raise ValueError(
                f"MomentMatching fits a covariance head, but {type(denoiser).__name__} has none: wrap it in "
                "trueward.covariance.SNCovariance or NPRCovariance."
            )
        noisy = add_noise(denoiser, batch, generator, self.times_of(denoiser.schedule), self.label_dropout)
        posterior, h = predict(noisy.x_t, noisy.t, **noisy.condition)
        goal = target(noisy.eps, posterior)
        if h.shape != goal.shape:
            raise ValueError(f"The head answered shape {tuple(h.shape)}, but its target is {tuple(goal.shape)}.")
        return (goal - h).square().flatten(1).sum(1)

    def to_config(self) -> dict[str, Any]:
        times = self.times.to_config() if isinstance(self.times, TimeSampler) else None
        return {"objective": "MomentMatching", "times": times, "label_dropout": self.label_dropout}
