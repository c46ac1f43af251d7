r"""Adaptive DPM-Solver: DPM-Solver-12 and -23, step sizes from the difference of two orders.

From s with a trial step h in lambda, `x_high` (order k, 2 or 3) and `x_low` (order k - 1) share their model values:

    tolerance = max(atol, rtol max(|x_low|, |x_prev|))         elementwise, x_prev is x_low of the last accepted step
    err       = sqrt(mean(((x_high - x_low) / tolerance)^2))   over the entries of a sample
    accept if err <= 1:   x <- x_high, s <- t
    h <- min(theta h err^(-1/k), growth h, what is left)

k = 2: orders 1 and 2 (r1 = 1/2). k = 3: order 2 with r1 = 1/3 and order 3 with r1 = 1/3, r2 = 2/3. The answer at s is kept over
rejections, so a rejected trial costs k - 1 evaluations and an accepted one k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trueward.samplers.dpm_singlestep import INNER
from trueward.samplers.dpm_solver import DPMSolver
from trueward.samplers.exponential import (
    Weights,
    clean_weights,
    first_order,
    ode_interval,
    second_order,
    third_order,
    third_order_stage,
)
from trueward.samplers.plan import Level, Plan, combine
from trueward.samplers.run import Run
from trueward.schedules import Schedule
from trueward.times import Levels

_ARRIVED = 1e-10  # in lambda


@dataclass(frozen=True)
class DPMSolverAdaptive(DPMSolver):
    """DPM-Solver-12 (order 2) and DPM-Solver-23 (order 3) with adaptive steps (Lu et al. 2022, appendix C).

    The number of evaluations is reported, not set: one is one call of the network for all samples still running.

    Args:
        order: 2 or 3, the order of the better of the two solutions.
        rtol, atol: tolerated error of a step, relative and absolute in units of the data; the default atol is 2/256, for
            data in [-1, 1].
        first_step: size of the first trial step in lambda.
        theta: safety factor of the step size.
        per_sample: every sample has its own time and step size and leaves the batch when it has arrived, so that it does not
            depend on its neighbours. False is what the official code does: one step size for the batch, the largest error
            counts; fewer calls of the network, but samples depend on the batch.
        growth: largest factor from one step size to the next. The two solutions of a single sample with few entries may agree
            by accident, and a step size that follows such an accident is far too large. Default: 1.5 with `per_sample`, else
            unlimited as in the official code.
        max_nfe: give up beyond this many evaluations.
        steps, grid: unused.
    """

    steps: int = 1
    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    first_step: float = 0.05
    theta: float = 0.9
    per_sample: bool = True
    growth: float | None = None
    max_nfe: int = 10_000

    name: ClassVar[str] = "dpm-solver-adaptive"
    row_wise: ClassVar[bool] = False
    orders: ClassVar[tuple[int, ...]] = (2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rtol", "atol", "first_step"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and positive, got {value}.")
        if self.growth is not None and not self.growth > 1.0:
            raise ValueError(f"growth must be larger than 1, got {self.growth}.")
        if not 0.0 < self.theta < 1.0:
            raise ValueError(f"theta must lie between 0 and 1, got {self.theta}.")
        if self.max_nfe < self.order:
            raise ValueError(f"max_nfe must be at least {self.order} (one step), got {self.max_nfe}.")

    @classmethod
    def for_budget(cls, nfe: int, **options: Any) -> DPMSolverAdaptive:
        raise ValueError("The adaptive solver chooses its own number of evaluations; set rtol and atol instead.")

    @property
    def convergence_order(self) -> int:
        return self.order

    def nfe(self, schedule: Schedule) -> None:
        """Unknown before the run."""
        return None

    def cost(self, level: int) -> int:
        raise ValueError("An adaptive solver has no levels; its cost is known after the run.")

    def make_plan(self, schedule: Schedule) -> Plan:
        return Plan(self.visited(schedule, self.grid(schedule, 1, self.t_start, self.t_end)))  # type: ignore[operator]

    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        raise ValueError("The adaptive solver has no levels to step through; use sample().")

    def solve(self, run: Run, x: Tensor) -> Iterator[tuple[float | Tensor, Tensor]]:
        schedule, ends = run.denoiser.schedule, run.plan.levels
        start, end = (float(t) for t in ends.t)
        lam_start, lam_end = ends.half_log_snr.tolist()
        d = math.copysign(1.0, lam_end - lam_start)  # +1 towards the data, -1 when inverting
        n = x.shape[0] if self.per_sample else 1  # how many clocks there are
        clock = np.arange(n)  # the clocks still running, and so the rows
        t, lam, reached = np.full(n, start), np.full(n, lam_start), np.full(n, start)
        h = np.full(n, d * min(self.first_step, abs(lam_end - lam_start)))
        x, x_prev, result = x.clone(), x, x.clone()
        m_0 = torch.empty_like(x)
        growth = self.growth if self.growth is not None else 1.5 if self.per_sample else math.inf
        moved = np.ones(n, dtype=bool)
        run.accepted = run.rejected = 0
        while len(clock):
            needed = self.order - 1 + bool(moved.any())
            if run.nfe + needed + self._final_steps > self.max_nfe:
                raise ValueError(
                    f"max_nfe={self.max_nfe} evaluations were not enough: {len(clock) if self.per_sample else x.shape[0]} samples had not arrived; raise it, or rtol and atol."
                )
            rows = torch.as_tensor(clock, device=x.device) if self.per_sample else None
            if moved.any():
                self._refresh(run, x, t, moved, rows, m_0)
            goal = np.where(np.abs(lam_end - lam - h) <= _ARRIVED, lam_end, lam + h)
            x_low, x_high = self._trial(run, x, m_0, t, lam, goal - lam, rows)
            err = self._error(x_low, x_high, x_prev)
            if not np.isfinite(err).all():
                yield start, torch.full_like(result, math.nan)
                return
            moved = err <= 1.0
            run.accepted += int(moved.sum())
            run.rejected += int((~moved).sum())
            accept = self._mask(moved, x)
            x, x_prev = torch.where(accept, x_high, x), torch.where(accept, x_low, x_prev)
            lam = np.where(moved, goal, lam)
            left = np.abs(lam_end - lam)
            running = left > _ARRIVED
            t = np.where(moved, schedule.time_of_log_snr(torch.as_tensor(2.0 * lam)).numpy(), t)
            reached[clock] = t = np.where(running, t, end)
            with np.errstate(divide="ignore"):  # err = 0: as far as allowed
                factor = np.minimum(self.theta * err ** (-1.0 / self.order), growth)
            h = d * np.minimum(factor * np.abs(h), left)
            if rows is None:
                result.copy_(x)
            else:
                result[rows] = x
            if self.per_sample and not running.all():
                keep = torch.as_tensor(np.flatnonzero(running), device=x.device)
                x, x_prev, m_0 = x[keep], x_prev[keep], m_0[keep]
            any_moved = bool(moved.any())
            clock, t, lam, h, moved = (v[running] for v in (clock, t, lam, h, moved))
            if any_moved:
                yield end if not len(clock) else self._times(reached.copy()), result
        if self.denoise_to_zero:
            m = self.answer(run, result, end, "m_0")
            of_x, of_m = clean_weights(self.algorithm, ends)
            yield 0.0, combine((of_m, m), (of_x, result))

    def _refresh(self, run: Run, x: Tensor, t: np.ndarray, moved: np.ndarray, rows: Tensor | None, m_0: Tensor) -> None:
        """Asks for m(x, s) where x is new; the other rows keep their answer."""
        if rows is None or moved.all():
            m_0.copy_(self.answer(run, x, self._times(t), "answer", rows))
        else:
            new = torch.as_tensor(np.flatnonzero(moved), device=x.device)
            m_0[new] = self.answer(run, x[new], self._times(t[moved]), "answer", rows[new])

    def _trial(
        self, run: Run, x: Tensor, m_0: Tensor, t: np.ndarray, lam: np.ndarray, h: np.ndarray, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The solutions of order k - 1 and k after a step of h from lam."""
        schedule, form, kind = run.denoiser.schedule, self.algorithm, self.solver_type

        def at(r: float) -> Levels:
            return Levels.of(schedule, schedule.time_of_log_snr(torch.as_tensor(2.0 * (lam + r * h))).numpy())

        s, r1 = Levels.of(schedule, t), INNER[self.order][0]
        at_1, step = at(r1), ode_interval(form, s, at(1.0))
        u_1 = self._weighted(first_order(ode_interval(form, s, at_1)), x, m_0)
        m_1 = self.answer(run, u_1, self._times(at_1.t), "m_1", rows, stage=1)
        second = self._weighted(second_order(step, r1, kind), x, m_0, m_1)
        if self.order == 2:
            return self._weighted(first_order(step), x, m_0), second
        r2 = INNER[3][1]
        at_2 = at(r2)
        u_2 = self._weighted(third_order_stage(ode_interval(form, s, at_2), r1, r2), x, m_0, m_1)
        m_2 = self.answer(run, u_2, self._times(at_2.t), "m_2", rows, stage=2)
        return second, self._weighted(third_order(step, r1, r2, kind), x, m_0, m_1, m_2)

    def _error(self, x_low: Tensor, x_high: Tensor, x_prev: Tensor) -> np.ndarray:
        tolerance = (self.rtol * torch.maximum(x_low.abs(), x_prev.abs())).clamp(min=self.atol)
        err = ((x_high - x_low) / tolerance).square().flatten(1).mean(1).sqrt()
        return (err if self.per_sample else err.amax(0, keepdim=True)).double().cpu().numpy()

    def _times(self, t: np.ndarray) -> float | Tensor:
        return torch.as_tensor(t) if self.per_sample else float(t[0])

    def _mask(self, chosen: np.ndarray, x: Tensor) -> Tensor:
        return torch.as_tensor(chosen, device=x.device).view((-1,) + (1,) * (x.ndim - 1))

    def _weighted(self, weights: Weights, *tensors: Tensor) -> Tensor:
        view = (-1,) + (1,) * (tensors[0].ndim - 1)

        def column(w: np.ndarray) -> Any:
            return (
                torch.as_tensor(w).to(tensors[0].dtype).to(tensors[0].device).view(view)
                if self.per_sample
                else float(w[0])
            )

        return combine(*((column(w), v) for w, v in zip(weights, tensors, strict=False)))
