r"""The probability-flow ODE by an adaptive Runge-Kutta method.

With y = x / alpha and u = log(sigma / alpha) the flow of every schedule is

.. math:: dy / du = y - \mathrm{mean}(y, u)

(Song et al. 2021, eq. 13, in these coordinates), solved by the pair of Dormand and Prince (1980), order 5 with an error
estimate of order 4. Each sample has its own time and step size, so it does not depend on its neighbours; samples that have
arrived leave the batch. The last stage of a step is the first of the next one: an accepted step costs six evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from trueward.denoisers import Denoiser
from trueward.samplers.plan import Level, Plan
from trueward.samplers.run import Run, Samples
from trueward.samplers.sampler import Sampler
from trueward.schedules import Schedule
from trueward.times import Levels

# Dormand and Prince (1980), RK5(4)7FM: nodes, stages, and fifth minus fourth order weights
_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """Adaptive Dormand-Prince solution of the probability-flow ODE; the number of evaluations is reported, not set.

    Args:
        rtol, atol: tolerated error of a step, relative to y and absolute, in units of the data.
        first_step: size of the first trial step in u = log(sigma / alpha).
        max_nfe: give up beyond this many network evaluations.
        denoise_to_zero: replace the sample by the posterior mean at the end (one more evaluation).
        steps, grid: unused: the step size is adaptive.
    """

    steps: int = 1
    rtol: float = 1e-5
    atol: float = 1e-5
    first_step: float = 0.05
    max_nfe: int = 10_000
    denoise_to_zero: bool = False

    name: ClassVar[str] = "ode"
    order: ClassVar[int] = 5
    row_wise: ClassVar[bool] = False
    citation: ClassVar[tuple[str, ...]] = ("song2021score", "dormand1980family")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rtol", "atol", "first_step"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and positive, got {value}.")
        if self.max_nfe < 7:
            raise ValueError(f"max_nfe must be at least 7 (one step), got {self.max_nfe}.")

    @classmethod
    def for_budget(cls, nfe: int, **options: Any) -> ProbabilityFlow:
        raise ValueError("The adaptive ODE sampler chooses its own number of evaluations; set rtol and atol instead.")

    def nfe(self, schedule: Schedule) -> None:
        """Unknown before the run."""
        return None

    def make_plan(self, schedule: Schedule) -> Plan:
        return Plan(Levels.of(schedule, self.grid(schedule, 1, self.t_start, self.t_end)))  # type: ignore[operator]

    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        raise ValueError("The adaptive ODE sampler has no levels to step through; use sample().")

    def invert(self, denoiser: Denoiser, x_0: Tensor, **options: Any) -> Samples:
        """The latent x_T that flows to `x_0` (batch, *shape): the same ODE, from the end to the start."""
        schedule = denoiser.schedule
        start = schedule.t_max if self.t_start is None else self.t_start
        end = schedule.t_min if self.t_end is None else self.t_end
        backwards = replace(self, t_start=end, t_end=start, denoise_to_zero=False)
        return backwards.sample(denoiser, x_0, **options)

    def solve(self, run: Run, x: Tensor) -> Iterator[tuple[float | Tensor, Tensor]]:
        schedule, levels = run.denoiser.schedule, run.plan.levels
        view = (-1,) + (1,) * (x.ndim - 1)

        def column(value: Tensor) -> Tensor:
            return value.to(x.device, x.dtype).view(view)

        def slope(y: Tensor, u: Tensor, rows: Tensor) -> Tensor:
            """dy/du of some rows, y - mean."""
            t = schedule.time_of_log_snr(-2.0 * u).clamp(*sorted((float(levels.t[0]), float(levels.t[-1]))))
            return y - run.denoise(column(schedule.alpha(t)) * y, t, rows).mean

        u_start, u_end = (-levels.half_log_snr).tolist()
        direction = math.copysign(1.0, u_end - u_start)
        rows = torch.arange(x.shape[0])
        u = torch.full((x.shape[0],), u_start, dtype=torch.float64)
        h = torch.full_like(u, min(self.first_step, abs(u_end - u_start)))
        y = x / levels.alpha[0]
        result = x.clone()
        k_first = slope(y, u, rows)
        run.accepted = run.rejected = 0
        while len(rows):
            if run.nfe + 6 > self.max_nfe:
                raise ValueError(
                    f"max_nfe={self.max_nfe} evaluations were not enough: {len(rows)} of {x.shape[0]} samples had not arrived; raise it, or rtol and atol."
                )
            step = column(h * direction)
            k = [k_first]
            for c, weights in zip(_C[1:], _A[1:], strict=True):
                y_stage = torch.addcmul(y, step, sum(w * k_i for w, k_i in zip(weights, k, strict=True)))  # type: ignore[arg-type]
                k.append(slope(y_stage, u + c * direction * h, rows))
            y_next, k_next = y_stage, k[-1]  # first same as last
            error = step * sum(e * k_i for e, k_i in zip(_E, k, strict=True))
            scale = self.atol + self.rtol * torch.maximum(y.abs(), y_next.abs())
            norm = (error / scale).square().reshape(len(rows), -1).mean(1).sqrt().to("cpu", torch.float64)
            if not bool(norm.isfinite().all()):
                yield u, torch.full_like(result, math.nan)
                return
            good = norm <= 1.0
            run.accepted += int(good.sum())
            run.rejected += int((~good).sum())
            moved = good.to(x.device).view(view)
            y, k_first = torch.where(moved, y_next, y), torch.where(moved, k_next, k_first)
            u = torch.where(good, u + direction * h, u)
            left = (u_end - u) * direction
            running = left > 1e-10
            t = torch.where(running, schedule.time_of_log_snr(-2.0 * u), float(levels.t[-1]))
            result[rows.to(x.device)] = column(schedule.alpha(t)) * y
            keep = running.to(x.device)
            rows, u, h, norm, left, t = (v[running] for v in (rows, u, h, norm, left, t))
            y, k_first = y[keep], k_first[keep]
            factor = (0.9 * norm.clamp(min=1e-12) ** -0.2).clamp(0.2, 10.0)
            h = torch.minimum(h * factor, left)
            yield float(levels.t[-1]) if not len(rows) else t, result
        if self.denoise_to_zero:
            result.copy_(run.denoise(result, float(levels.t[-1])).mean)
            yield 0.0, result
