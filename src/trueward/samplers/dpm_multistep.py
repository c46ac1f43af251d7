r"""Multistep DPM-Solver: one network evaluation per step, the answers of earlier steps give the derivatives.

With nodes lambda_{-2}, lambda_{-1}, lambda_0 and their answers m_{-2}, m_{-1}, m_0, h0 = lambda_0 - lambda_{-1},
h1 = lambda_{-1} - lambda_{-2}, r0 = h0/h, r1 = h1/h, and A, B, E of :mod:`trueward.samplers.exponential`:

    order 1:   x_t = L x - c A m_0
    order 2:   x_t = L x - c A m_0 - c (A/2 or B) D,   D = (m_0 - m_{-1}) / r0         A/2 "dpmsolver", B "taylor"
    order 3:   x_t = L x - c A m_0 - c B D1 - c E D2   (divided differences)

Step i uses order min(i, order); short runs also end with low orders. Order 2 in data form is DPM-Solver++(2M).
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
    Interval,
    clean_weights,
    first_order,
    ode_interval,
    sde_interval,
    sde_std,
    second_order_multistep,
    third_order_multistep,
)
from trueward.samplers.plan import Level, Plan, Table
from trueward.samplers.run import Run
from trueward.schedules import Schedule
from trueward.times import Levels


@dataclass(frozen=True, eq=False)
class MultistepPlan(Plan):
    """The weights of x and of m_0, m_{-1}, m_{-2} in every step (as many as its order needs), and the noise of every step."""

    of_x: Table
    weights: tuple[tuple[float, ...], ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class DPMSolverMultistep(DPMSolver):
    """DPM-Solver++(2M), its third-order version and their noise forms; one evaluation per step.

    Args:
        ms3: of order 3. "reference" is what the official code, diffusers and k-diffusion compute: its second difference is
            half of the second derivative it stands for, which makes it formally second order. "consistent" is third order
            (when started at `t_max`, where the low orders of the first steps cost next to nothing). At 8 to 30 steps
            neither is uniformly better.
        lower_order_final: runs of fewer steps than this end with lower orders (the last step with order 1). True is the
            authors' 10, False is 0; diffusers has 15.
    """

    ms3: str = "reference"
    lower_order_final: int = 10

    name: ClassVar[str] = "dpm-solver++"
    row_wise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("ms3", self.ms3, ["reference", "consistent"])
        if isinstance(self.lower_order_final, bool):
            object.__setattr__(self, "lower_order_final", 10 if self.lower_order_final else 0)
        if self.lower_order_final < 0:
            raise ValueError(f"lower_order_final must be a number of steps >= 0, got {self.lower_order_final}.")
        if self.steps < self.order:
            raise ValueError(
                f"A multistep method of order={self.order} needs at least that many steps, got steps={self.steps}."
            )

    @classmethod
    def for_budget(cls, nfe: int, **options: Any) -> DPMSolverMultistep:
        return cls(steps=nfe - bool(options.get("denoise_to_zero", False)), **options)

    @property
    def convergence_order(self) -> int:
        return 2 if self.order == 3 and self.ms3 == "reference" else self.order

    def step_orders(self) -> np.ndarray:
        """The order of every step, (steps,)."""
        index = np.arange(self.steps)
        orders = np.minimum(index + 1, self.order)
        return np.minimum(orders, self.steps - index) if self.steps < self.lower_order_final else orders

    def interval(self, s: Levels, t: Levels) -> Interval:
        """The steps from the levels `s` to the levels `t`."""
        return ode_interval(self.algorithm, s, t)

    def noise_std(self, s: Levels, t: Levels) -> np.ndarray:
        """Standard deviation of the noise that every step adds."""
        return np.zeros(len(s))

    def make_plan(self, schedule: Schedule) -> MultistepPlan:
        times = self.grid(schedule, self.steps, self.t_start, self.t_end)  # type: ignore[operator]
        levels = self.visited(schedule, times)
        s, t = levels.part(slice(None, -1)), levels.part(slice(1, None))
        step = self.interval(s, t)
        h = np.diff(levels.half_log_snr)
        # what a step before the first one would need is never used: ones stand there
        r0 = np.concatenate([np.ones(1), h])[: self.steps] / h
        r1 = np.concatenate([np.ones(2), h])[: self.steps] / h
        candidates = (
            first_order(step),
            second_order_multistep(step, r0, self.solver_type),
            third_order_multistep(step, r0, r1, 1.0 if self.ms3 == "reference" else 2.0),
        )
        weights = [tuple(float(w[i]) for w in candidates[order - 1]) for i, order in enumerate(self.step_orders())]
        std = self.noise_std(s, t).tolist()
        if self.denoise_to_zero:
            weights.append(clean_weights(self.algorithm, levels))
            std.append(0.0)
            levels = Levels.of(schedule, times, clean=True)
        return MultistepPlan(
            levels, Table(np.array([w[0] for w in weights])), tuple(w[1:] for w in weights), tuple(std)
        )

    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        if not isinstance(level, int):
            raise ValueError(
                "A multistep method cannot stand at a different level in every row: its history belongs to one level. Use a single-step solver, e.g. dpm-solver++2s."
            )
        plan: MultistepPlan = run.plan  # type: ignore[assignment]
        history = run.history  # (level, c, y) with the answer m = c y, newest first
        if level == 0:
            history.clear()
        elif not history or history[0][0] != level - 1:
            raise ValueError(
                f"A multistep method takes its levels one after the other from 0; step {level} came out of turn."
            )
        buffer = _BUFFERS[level % self.order]
        c, y = self.scaled_answer(run, x, plan.times.values[level], buffer)
        if y.data_ptr() == x.data_ptr():  # a network that hands its input back: x is overwritten before y is forgotten
            y = run.scratch(buffer, x).copy_(y)
        history.insert(0, (level, c, y))
        out = torch.mul(x, plan.of_x.scalar(level, x), out=out)
        for weight, (_, c, y) in zip(plan.weights[level], history):
            if isinstance(c, Tensor):
                out.addcmul_(y, weight * c)
            else:
                out.add_(y, alpha=weight * c)
        del history[self.order :]
        if plan.std[level] > 0.0:
            out.add_(run.normal(level + 1 if draw is None else draw, x), alpha=plan.std[level])
        return out


_BUFFERS = ("m0", "m1", "m2")


@dataclass(frozen=True)
class DPMSolverSDE(DPMSolverMultistep):
    """DPM-Solver++ for the reverse SDE, of order 1 or 2 (Lu et al. 2022, DPM-Solver++, appendix B).

    x_t = (sigma_t/sigma_s) e^(-h) x + alpha_t (1 - e^(-2h)) (m_0 + D/2) + sigma_t sqrt(1 - e^(-2h)) z; order 1 is ancestral
    (DDPM) sampling with the variance beta~.
    """

    lower_order_final: int = 0

    name: ClassVar[str] = "dpm-solver++sde"
    orders: ClassVar[tuple[int, ...]] = (1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm != "data":
            raise ValueError(f"The SDE solver exists in data form only, got algorithm={self.algorithm!r}.")

    @property
    def stochastic(self) -> bool:
        return True

    def interval(self, s: Levels, t: Levels) -> Interval:
        return sde_interval(s, t)

    def noise_std(self, s: Levels, t: Levels) -> np.ndarray:
        return sde_std(s, t)

    def invert(self, denoiser: Any, x_0: Tensor, **options: Any) -> Any:
        """Not possible: the SDE forgets where it came from."""
        raise ValueError("A stochastic sampler has no inverse: use a deterministic one, e.g. dpm-solver++.")
