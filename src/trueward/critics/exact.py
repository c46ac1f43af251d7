"""The critic that perfect training would end at: the exact log ratio of two closed-form truths."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trueward.critics.critic import Critic
from trueward.schedules import Schedule
from trueward.truth import GaussianMixture


class TruthCritic(Critic):
    """log q_t / p_t of two :class:`~trueward.truth.GaussianMixture`, in float64.

    Args:
        real: the law q of the data.
        generated: the law p of the samples.
        schedule: the forward process.
        scale: multiplies the answer: a deliberately imperfect critic where it is not 1.
    """

    def __init__(
        self, real: GaussianMixture, generated: GaussianMixture, schedule: Schedule, scale: float = 1.0
    ) -> None:
        if real.shape != generated.shape:
            raise ValueError(f"Both truths must have the same shape, got {real.shape} and {generated.shape}.")
        super().__init__(schedule, shape=tuple(real.shape))
        self.real, self.generated, self.scale = real, generated, float(scale)

    def logit(self, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return self.scale * self.real.log_ratio(self.generated, x_t, self.schedule, t)
