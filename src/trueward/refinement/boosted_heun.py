r"""Heun's method with the boosting of Discriminator Guidance: samples that the critic calls generated get more help.

With i the number of the step, l_i the critic's log ratio at the first evaluation of step i, and l_{-1} = +inf,

    i even, l_i < 0                       the first slope is guided twice as much
    i = 5, 10, ..., l_{i-1} < 0           the step churns: gamma = min(4 / steps, sqrt(2) - 1), S_noise = 1

so a doubtful sample is noised anew now and then and led down with more force. Outside the window of the guidance l is +inf
and nothing is boosted. This was used for class-conditional CIFAR-10, with the weights (1, 0).

The coefficients of both kinds of steps are one table: row k holds those of step k, row steps + k those of step k with churn,
and a sample picks its row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from trueward.denoisers import Denoiser
from trueward.noise import Noise
from trueward.refinement.discriminator_guidance import guidance_of
from trueward.samplers.edm import EDMHeun, HeunPlan
from trueward.samplers.plan import Level, Table, combine
from trueward.samplers.run import Run
from trueward.schedules import Schedule


@dataclass(frozen=True)
class BoostedHeun(EDMHeun):
    """Heun's method that boosts the guidance of doubtful samples (Kim et al. 2023).

    It samples a :class:`DiscriminatorGuidance`, and reads its log ratios.

    Args:
        boost: factor of the guidance of the first evaluation at boosted steps.
        boost_every: boosted steps are 0, this, twice this, ...
        extra_churn, extra_noise: S_churn and S_noise of a doubtful sample.
        churn_every: doubtful samples churn at steps this, twice this, ...
    """

    boost: float = 2.0
    boost_every: int = 2
    extra_churn: float = 4.0
    extra_noise: float = 1.0
    churn_every: int = 5

    name: ClassVar[str] = "edm-boosted"
    row_wise: ClassVar[bool] = False  # a step depends on the log ratio of the step before
    citation: ClassVar[tuple[str, ...]] = ("kim2023refining", "karras2022elucidating")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("boost", "extra_churn", "extra_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and >= 0, got {value}.")
        for name in ("boost_every", "churn_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of steps >= 1, got {value!r}.")

    @property
    def stochastic(self) -> bool:
        return self.churn > 0.0 or self.extra_churn > 0.0

    def make_plan(self, schedule: Schedule) -> HeunPlan:
        plain = super().make_plan(schedule)
        churned = replace(self, churn=self.extra_churn, churn_noise=self.extra_noise)
        other = super(BoostedHeun, churned).make_plan(schedule)
        tables = {
            f.name: Table(np.concatenate([getattr(plan, f.name).values for plan in (plain, other)]))
            for f in fields(HeunPlan)
            if f.init and f.name not in ("levels", "churns")
        }
        return HeunPlan(levels=plain.levels, churns=plain.churns + other.churns, **tables)

    def start(self, denoiser: Denoiser, noise: Noise | None = None, **condition: object) -> Run:
        if guidance_of(denoiser).boost != 1.0:
            raise ValueError("The guidance has a boost of its own: leave it at 1, this sampler boosts.")
        return super().start(denoiser, noise, **condition)

    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        if isinstance(level, Tensor):
            raise ValueError("A boosted step depends on the step before, so all samples stand at one level.")
        plan: HeunPlan = run.plan  # type: ignore[assignment]
        guided = guidance_of(run.denoiser)
        row = torch.full((x.shape[0],), level, device=x.device)
        if run.history and level % self.churn_every == 0:
            row += self.steps * (run.history[-1] < 0)
        x_hat = x
        if any(plan.churns[k] for k in set(row.tolist())):
            z = run.normal(level + 1 if draw is None else draw, x)
            x_hat = combine((plan.hat_of_x(row, x), x), (plan.hat_of_noise(row, x), z))
        boosted = guided.boosted(self.boost) if level % self.boost_every == 0 else guided
        first, logit = boosted.answer(x_hat, plan.hat_time.time(row), **run.condition)
        run.nfe, run.posterior, run.history = run.nfe + 1, first, [logit]
        of_x = (plan.of_x(row, x), x_hat)
        euler = (of_x, (plan.euler_of_mean(row, x), first.mean))
        if level == self.steps - 1:
            return combine(*euler, out=out)
        second = run.denoise(combine(*euler), run.time(level + 1), stage=1)
        heun = ((plan.heun_of_first(row, x), first.mean), (plan.heun_of_second(row, x), second.mean))
        return combine(of_x, *heun, out=out)
