r"""The stochastic Heun sampler of EDM (Karras et al. 2022, algorithm 2), on any schedule.

In the coordinates y = x / alpha, s = sigma / alpha every schedule is EDM's: dy/ds = (y - mean) / s. One step from s to s':

    s_hat = s (1 + gamma),  y_hat = y + sqrt(s_hat^2 - s^2) S_noise z        churn: more noise, at a higher level
    d  = (y_hat - mean(y_hat, s_hat)) / s_hat,   y_e = y_hat + (s' - s_hat) d      Euler
    d' = (y_e - mean(y_e, s')) / s',             y'  = y_hat + (s' - s_hat) (d + d') / 2     Heun, unless s' = 0

With r = s'/s_hat this is linear in y_hat and the two answers m, m' of the model, which is how it is computed:

    y_e = r y_hat + (1 - r) m
    y'  = r y_hat + (1 - r)(2r - 1)/(2r) m + (1 - r)/(2r) m'
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trueward.samplers.plan import Level, Plan, Table, combine
from trueward.samplers.run import Run
from trueward.samplers.sampler import Sampler
from trueward.schedules import Schedule
from trueward.times import Levels, TimeGrid


@dataclass(frozen=True, eq=False)
class HeunPlan(Plan):
    """Coefficients of a churned Heun step, in the units of x."""

    hat_time: Table  # the time of s_hat
    hat_of_x: Table  # x_hat = hat_of_x x + hat_of_noise z
    hat_of_noise: Table
    of_x: Table  # both the Euler point and the result contain of_x x_hat
    euler_of_mean: Table
    heun_of_first: Table
    heun_of_second: Table
    churns: tuple[bool, ...]


@dataclass(frozen=True)
class EDMHeun(Sampler):
    """Heun's method with optional churn (Karras et al. 2022, algorithm 2), order 2.

    `steps` steps cost 2 steps - 1 network evaluations: the last one, to the data, is an Euler step.

    Args:
        churn: S_churn; 0 is deterministic. Each step raises the noise by gamma = min(churn / steps, sqrt(2) - 1).
        churn_min, churn_max: S_tmin, S_tmax: churn only while sigma / alpha lies between them. Noise is never raised
            above the level at `t_max`.
        churn_noise: S_noise, the standard deviation of the added noise.
    """

    grid: TimeGrid | str = "karras"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    name: ClassVar[str] = "edm"
    order: ClassVar[int] = 2
    citation: ClassVar[tuple[str, ...]] = ("karras2022elucidating",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("churn", "churn_min", "churn_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and >= 0, got {value}.")
        if not self.churn_max >= self.churn_min:
            raise ValueError(f"churn_max must be at least churn_min={self.churn_min}, got {self.churn_max}.")

    @classmethod
    def for_budget(cls, nfe: int, **options: Any) -> EDMHeun:
        """The largest number of steps whose 2 steps - 1 evaluations fit into `nfe`."""
        return cls(steps=(nfe + 1) // 2, **options)

    @property
    def stochastic(self) -> bool:
        return self.churn > 0.0

    def draws_noise(self, schedule: Schedule, level: int) -> bool:
        return self.plan(schedule).churns[level]  # type: ignore[attr-defined]

    def cost(self, level: int) -> int:
        return 1 if level == self.steps - 1 else 2

    def make_plan(self, schedule: Schedule) -> HeunPlan:
        times = self.grid(schedule, self.steps - 1, self.t_start, self.t_end)  # type: ignore[operator]
        levels = Levels.of(schedule, times, clean=True)
        s = levels.sigma / levels.alpha
        s_t, s_next = s[:-1], s[1:]
        gamma = np.full(self.steps, min(self.churn / self.steps, math.sqrt(2.0) - 1.0))
        gamma[(s_t < self.churn_min) | (s_t > self.churn_max)] = 0.0
        highest = math.exp(-0.5 * schedule.log_snr(schedule.t_max).item())
        s_hat = np.maximum(np.minimum(s_t * (1.0 + gamma), highest), s_t)
        churns = s_hat > s_t
        hat = schedule.time_of_log_snr(torch.as_tensor(-2.0 * np.log(s_hat)))
        hat_time = np.where(churns, hat.numpy(), levels.t[:-1])
        hat_alpha = np.where(churns, schedule.alpha(torch.as_tensor(hat_time)).numpy(), levels.alpha[:-1])
        noise = hat_alpha * np.sqrt(np.where(churns, s_hat**2 - s_t**2, 0.0)) * self.churn_noise
        r, alpha_next = s_next / s_hat, levels.alpha[1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            first = np.where(r > 0, (1.0 - r) * (2.0 * r - 1.0) / (2.0 * r), 1.0)
            second = np.where(r > 0, (1.0 - r) / (2.0 * r), 0.0)
        return HeunPlan(
            levels,
            Table(hat_time),
            Table(hat_alpha / levels.alpha[:-1]),
            Table(noise),
            Table(alpha_next * r / hat_alpha),
            Table(alpha_next * (1.0 - r)),
            Table(alpha_next * first),
            Table(alpha_next * second),
            tuple(churns.tolist()),
        )

    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        plan: HeunPlan = run.plan  # type: ignore[assignment]
        if any(plan.churns) if isinstance(level, Tensor) else plan.churns[level]:
            z = run.normal(level + 1 if draw is None else draw, x)
            x_hat = combine((plan.hat_of_x(level, x), x), (plan.hat_of_noise(level, x), z), out=run.scratch("x_hat", x))
        else:
            x_hat = x
        first = run.denoise(x_hat, plan.hat_time.time(level)).mean
        euler = ((plan.of_x(level, x), x_hat), (plan.euler_of_mean(level, x), first))
        last = plan.steps - 1
        if not isinstance(level, Tensor):
            if level == last:
                return combine(*euler, out=out)
            x_e = combine(*euler, out=run.scratch("x_e", x))
            second = run.denoise(x_e, run.time(level + 1), stage=1).mean
            heun = ((plan.heun_of_first(level, x), first), (plan.heun_of_second(level, x), second))
            return combine(euler[0], *heun, out=out)
        # rows on different levels: those that are on the last one need no second answer
        x_next = combine(*euler, out=out)
        rows = (level < last).nonzero()[:, 0]
        if len(rows):
            k = level[rows]
            second = run.denoise(x_next[rows], run.time(k + 1), rows, stage=1).mean
            x_next[rows] = combine(
                (plan.of_x(k, x), x_hat[rows]),
                (plan.heun_of_first(k, x), first[rows]),
                (plan.heun_of_second(k, x), second),
            )
        return x_next
