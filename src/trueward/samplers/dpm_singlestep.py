r"""Single-step DPM-Solver: each step asks the model `order` times and needs nothing of the steps before.

From s to t, h = lambda_t - lambda_s, with inner points s1, s2 at lambda_s + r1 h and lambda_s + r2 h:

    u1  = order-1 step to s1,                        m_1 = m(u1, s1)
    u2  = L x - c A m_0 - c (r2/r1) B (m_1 - m_0)    to s2, with the L, c, A, B of that interval,   m_2 = m(u2, s2)
    x_t = L x - c A m_0 - c (1/r1) (A/2 or B) (m_1 - m_0)                 order 2, r1 = 1/2
    x_t = L x - c A m_0 - c (1/r2) B (m_2 - m_0)                          order 3, r1 = 1/3, r2 = 2/3, "dpmsolver"
    x_t = L x - c A m_0 - c B D1 - c E D2                                 order 3, "taylor" (divided differences)

(A, B, E of :mod:`trueward.samplers.exponential`; A/2 is "dpmsolver", B "taylor"). Order 3 needs r2 = 2/3. Rows of a batch may
stand at different levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trueward.naming import check_name
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
from trueward.samplers.plan import Level, Plan, Table, combine
from trueward.samplers.run import Run
from trueward.schedules import Schedule
from trueward.times import Levels, UniformLogSNR

Tables = tuple[Table, ...]

INNER = {2: (1.0 / 2.0,), 3: (1.0 / 3.0, 2.0 / 3.0)}
"""Where the inner points of a step lie, in fractions of h."""


@dataclass(frozen=True, eq=False)
class SinglestepPlan(Plan):
    """For every step its order, the times of its inner points, and the weights of (x, m_0, m_1, m_2)."""

    orders: tuple[int, ...]
    times_1: Table
    times_2: Table
    to_1: Tables
    to_2: Tables
    to_end: Tables


def weighted(tables: Tables, level: Level, *tensors: Tensor, out: Tensor | None = None) -> Tensor:
    """The sum of the tensors with their weights at `level`."""
    return combine(*((table(level, v), v) for table, v in zip(tables, tensors, strict=False)), out=out)


@dataclass(frozen=True)
class DPMSolverSinglestep(DPMSolver):
    """`steps` equal steps of `order` evaluations each; order 2 in data form is DPM-Solver++(2S).

    A grid that is not uniform in log-SNR is asked for steps * order cells, of which a step spans `order`.

    Args:
        inner: where the inner points lie. "grid" is the nodes that the grid has inside the step; "lambda" is always 1/2, or
            1/3 and 2/3, of the step in log-SNR. On the log-SNR grid they are the same; on others "grid" is what the
            official code does, and then order 3 holds only asymptotically.
    """

    inner: str = "grid"

    name: ClassVar[str] = "dpm-solver++2s"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("inner", self.inner, ["grid", "lambda"])

    @classmethod
    def for_budget(cls, nfe: int, **options: Any) -> DPMSolverSinglestep:
        """The largest number of steps whose evaluations fit into `nfe`."""
        order = options.get("order", cls.order)
        steps = (nfe - bool(options.get("denoise_to_zero", False))) // order
        if steps < 1:
            raise ValueError(f"nfe={nfe} does not pay for one step of order={order}.")
        return cls(steps=steps, **options)

    @property
    def convergence_order(self) -> int:
        return self.order

    def step_orders(self) -> np.ndarray:
        """The order, and so the cost, of every step."""
        return np.full(self.steps, self.order)

    def cost(self, level: int) -> int:
        orders = self.step_orders()
        return int(orders[level]) if level < len(orders) else 1

    def nodes(self, schedule: Schedule, orders: np.ndarray) -> tuple[Levels, np.ndarray | None]:
        """The levels between steps, and the inner points (steps, 2) where the grid has placed them."""
        if isinstance(self.grid, UniformLogSNR):
            return self.visited(schedule, self.grid(schedule, len(orders), self.t_start, self.t_end)), None
        calls = int(orders.sum())
        levels = self.visited(schedule, self.grid(schedule, calls, self.t_start, self.t_end))  # type: ignore[operator]
        ends = np.concatenate([[0], np.cumsum(orders)])
        outer = Levels(levels.t[ends], levels.alpha[ends], levels.sigma[ends])
        inside = np.minimum(ends[:-1, None] + [[1, 2]], calls)
        return outer, None if self.inner == "lambda" else levels.t[inside]

    def make_plan(self, schedule: Schedule) -> SinglestepPlan:
        orders = self.step_orders()
        levels, inside = self.nodes(schedule, orders)
        s, t = levels.part(slice(None, -1)), levels.part(slice(1, None))
        h = t.half_log_snr - s.half_log_snr
        # where a step has no inner point, the fractions below stand for it and are not used
        r = np.where(orders[:, None] == 3, INNER[3], (INNER[2][0], 2.0 / 3.0))
        inner_t = schedule.time_of_log_snr(torch.as_tensor(2.0 * (s.half_log_snr[:, None] + r * h[:, None]))).numpy()
        if inside is not None:
            used = orders[:, None] >= np.array([[2, 3]])
            inner_t = np.where(used, inside, inner_t)
        at_1, at_2 = Levels.of(schedule, inner_t[:, 0]), Levels.of(schedule, inner_t[:, 1])
        if inside is not None:
            placed = np.stack([at_1.half_log_snr, at_2.half_log_snr], axis=1) - s.half_log_snr[:, None]
            r = np.where(used, placed / h[:, None], r)
        r1, r2 = r[:, 0], r[:, 1]
        step, to_2 = ode_interval(self.algorithm, s, t), ode_interval(self.algorithm, s, at_2)
        candidates = (
            first_order(step),
            second_order(step, r1, self.solver_type),
            third_order(step, r1, r2, self.solver_type),
        )
        to_end = [np.zeros(len(orders)) for _ in range(4)]
        for order, weights in enumerate(candidates, start=1):
            for total, w in zip(to_end, weights):
                total += np.where(orders == order, w, 0.0)
        plan_orders = tuple(orders.tolist())
        stages: tuple[Weights, ...] = (
            first_order(ode_interval(self.algorithm, s, at_1)),
            third_order_stage(to_2, r1, r2),
        )
        if self.denoise_to_zero:
            of_x, of_m = clean_weights(self.algorithm, levels)
            to_end = [np.append(w, last) for w, last in zip(to_end, (of_x, of_m, 0.0, 0.0))]
            plan_orders += (1,)
            levels = Levels.of(schedule, levels.t, clean=True)
        tables = [tuple(map(Table, weights)) for weights in (*stages, to_end)]
        return SinglestepPlan(levels, plan_orders, Table(inner_t[:, 0]), Table(inner_t[:, 1]), *tables)

    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        plan: SinglestepPlan = run.plan  # type: ignore[assignment]
        m_0 = self.answer(run, x, run.time(level), "m_0")
        if isinstance(level, Tensor):
            return self._finish_rows(run, x, level, m_0, out)
        order = plan.orders[level]
        if order == 1:
            return weighted(plan.to_end, level, x, m_0, out=out)
        u_1 = weighted(plan.to_1, level, x, m_0, out=run.scratch("u_1", x))
        m_1 = self.answer(run, u_1, plan.times_1.time(level), "m_1", stage=1)
        if order == 2:
            return weighted(plan.to_end, level, x, m_0, m_1, out=out)
        u_2 = weighted(plan.to_2, level, x, m_0, m_1, out=run.scratch("u_2", x))
        m_2 = self.answer(run, u_2, plan.times_2.time(level), "m_2", stage=2)
        return weighted(plan.to_end, level, x, m_0, m_1, m_2, out=out)

    def _finish_rows(self, run: Run, x: Tensor, level: Tensor, m_0: Tensor, out: Tensor | None) -> Tensor:
        """The rest of a step of rows at different levels: only the rows that need it are asked about again."""
        plan: SinglestepPlan = run.plan  # type: ignore[assignment]
        orders = torch.tensor(plan.orders, device=level.device)[level]
        out = weighted(plan.to_end, level, x, m_0, out=out)
        rows = (orders >= 2).nonzero()[:, 0]
        if not len(rows):
            return out
        k, x_r, m_0r = level[rows], x[rows], m_0[rows]
        m_1 = self.answer(run, weighted(plan.to_1, k, x_r, m_0r), plan.times_1.time(k), "rows_1", rows, stage=1)
        out[rows] += plan.to_end[2](k, x) * m_1
        third = (orders[rows] == 3).nonzero()[:, 0]
        if not len(third):
            return out
        rows, k = rows[third], k[third]
        u_2 = weighted(plan.to_2, k, x_r[third], m_0r[third], m_1[third])
        m_2 = self.answer(run, u_2, plan.times_2.time(k), "rows_2", rows, stage=2)
        out[rows] += plan.to_end[3](k, x) * m_2
        return out


@dataclass(frozen=True)
class DPMSolverFast(DPMSolverSinglestep):
    """DPM-Solver-fast: exactly `steps` network evaluations, spent on single steps of `order` and a shorter rest at the end.

    For order 3 and K evaluations there are K//3 + 1 steps, of the orders 3, ..., 3 and then 2, 1 (K divisible by 3), 1 or 2
    (Lu et al. 2022, appendix D.2); for order 2, of the orders 2, ..., 2 and 1 if K is odd.

    Args:
        steps: number of network evaluations (not counting `denoise_to_zero`).
    """

    order: int = 3
    algorithm: str = "noise"

    name: ClassVar[str] = "dpm-solver"

    @property
    def convergence_order(self) -> int:
        """A last step of order 1 has an error of second order, which shows after some hundred steps."""
        return 2 if self.order == 3 and self.steps % 3 != 2 else self.order

    @classmethod
    def for_budget(cls, nfe: int, **options: Any) -> DPMSolverFast:
        """Exactly `nfe` evaluations."""
        return cls(steps=nfe - bool(options.get("denoise_to_zero", False)), **options)

    def step_orders(self) -> np.ndarray:
        whole, rest = divmod(self.steps, self.order)
        if self.order == 3 and rest == 0:
            return np.array([3] * (whole - 1) + [2, 1])
        return np.array([self.order] * whole + [rest] * (rest > 0))
