r"""The contract of a sampler: from noise to data, one level at a time.

A sampler is an immutable set of options. Everything that depends on the schedule is computed once, in float64, into a
*plan* (tables of coefficients, one entry per step) that is remembered; a step is then a linear combination of tensors::

    x_next = a[k] x + b[k] mean + c[k] noise

Everything that belongs to one call (the model, the noise, the history of a multistep method, the count of network
evaluations) lives in a :class:`~trueward.samplers.run.Run` that the caller owns. A sampler therefore holds no state during or between calls, and
two threads may share one.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trueward.denoisers import Denoiser
from trueward.noise import Noise
from trueward.samplers.plan import Level, Plan
from trueward.samplers.run import Run, Samples, Step, check_condition
from trueward.schedules import Schedule
from trueward.times import Levels, TimeGrid, time_grid


class NonFiniteSamples(ValueError):
    """The model's answers led to NaN or infinity; the message says where."""


@dataclass(frozen=True)
class Sampler(ABC):
    """A way from noise to data.

    Args:
        steps: number of steps (see each sampler for what a step costs).
        grid: which levels to visit: a :class:`~trueward.times.TimeGrid` or its name.
        t_start: where to start; default `schedule.t_max`. A smaller value starts from a noised datum.
        t_end: where to end; default `schedule.t_min`.
    """

    steps: int = 20
    grid: TimeGrid | str = "log-snr"
    t_start: float | None = None
    t_end: float | None = None

    name: ClassVar[str]
    citation: ClassVar[tuple[str, ...]] = ()
    row_wise: ClassVar[bool] = True  # can `step` be given another level in every row?

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ValueError(f"steps must be a whole number >= 1, got {self.steps!r}.")
        object.__setattr__(self, "grid", time_grid(self.grid))
        for name in ("t_start", "t_end"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite time >= 0, got {value}.")

    @classmethod
    def for_budget(cls, nfe: int, **options: Any) -> Sampler:
        """The sampler of this kind that spends at most `nfe` network evaluations (exactly, where steps cost one)."""
        return cls(steps=nfe, **options)

    # --- what a subclass gives ----------------------------------------------------------------------------------------

    @abstractmethod
    def make_plan(self, schedule: Schedule) -> Plan:
        """The levels and the tables of coefficients for a schedule. Called once per schedule; use :meth:`plan`."""

    @abstractmethod
    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """From `level` to the next one.

        Args:
            run: the call this step belongs to.
            x: (batch, *shape), the state at `level`; it is not changed.
            level: 0 ... steps-1, or one level for every row (batch,), which costs one call of the network all the same.
            draw: which draw of the rows' noise to use; default `level` + 1 (draw 0 is x_T).
            out: buffer for the result, not `x` itself.
        """

    @property
    def stochastic(self) -> bool:
        """True if steps draw noise: the same x_T then leads to other samples for other seeds."""
        return False

    def draws_noise(self, schedule: Schedule, level: int) -> bool:
        """True if the step that leaves `level` draws noise."""
        return self.stochastic

    def cost(self, level: int) -> int:
        """Network evaluations of the step that leaves `level`."""
        return 1

    # --- what every sampler has ---------------------------------------------------------------------------------------

    def plan(self, schedule: Schedule) -> Plan:
        """The plan for a schedule, remembered."""
        return _plan(self, schedule)

    def levels(self, schedule: Schedule) -> Levels:
        """The noise levels that will be visited."""
        return self.plan(schedule).levels

    def nfe(self, schedule: Schedule) -> int | None:
        """Network evaluations of a whole run; None if only the run can tell (adaptive)."""
        return sum(self.cost(level) for level in range(self.plan(schedule).steps))

    def start(self, denoiser: Denoiser, noise: Noise | None = None, **condition: Any) -> Run:
        """Opens a call that is stepped by hand with :meth:`step`."""
        return Run(denoiser, self.plan(denoiser.schedule), noise, condition)

    def solve(self, run: Run, x: Tensor) -> Iterator[tuple[float | Tensor, Tensor]]:
        """Runs all steps, yielding (time reached, state) after each. Two buffers alternate; `x` itself is left alone."""
        buffers: list[Tensor | None] = [None, None]
        for level in range(run.plan.steps):
            x = buffers[level % 2] = self.step(run, x, level, out=buffers[level % 2])
            yield run.plan.times.values[level + 1], x

    def prior(
        self, schedule: Schedule, noise: Noise, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """x_T: draw 0 of every row, scaled to where sampling starts."""
        return noise.normal(0, shape, dtype, device) * schedule.prior_std(float(self.levels(schedule).t[0])).item()

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        x_T: Tensor | None = None,
        *,
        n: int | None = None,
        shape: Sequence[int] | None = None,
        seed: int = 0,
        indices: Sequence[int] | Tensor | None = None,
        callback: Callable[[Step], None] | None = None,
        progress: bool = False,
        trajectory: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **condition: Any,
    ) -> Samples:
        """Draws samples.

        Sample number i of a seed is the same whatever the batch it is drawn in: `indices` says which ones these are.

        Args:
            denoiser: the model.
            x_T: (batch, *shape), where to start; drawn from the prior if not given. It is not changed.
            n: how many, if neither `x_T` nor `indices` is given.
            shape: shape of one sample, if the denoiser does not know it.
            seed, indices: identity of the samples; `indices` defaults to 0 ... n-1.
            callback: called with a :class:`Step` after every step.
            progress: show a progress bar.
            trajectory: keep all states.
            dtype, device: default: those of `x_T`, else of the denoiser.
            **condition: passed to the denoiser; one number for ``class_labels`` holds for all rows.

        Raises:
            ValueError: on wrong shapes, non-finite input, labels out of range, or a model that answers NaN or infinity
                (with the step and the time at which it first did).
        """
        x_T, noise, condition = self._inputs(denoiser, x_T, n, shape, seed, indices, dtype, device, condition)
        run = self.start(denoiser, noise, **condition)
        steps = None if self.nfe(denoiser.schedule) is None else run.plan.steps
        states: list[Tensor] = [x_T.clone()] if trajectory else []
        times: list[float | Tensor] = [run.plan.times.values[0]]
        x = x_T
        solution: Any = self.solve(run, x_T)
        if progress:
            from tqdm.auto import tqdm

            solution = tqdm(solution, total=steps, desc=self.name, unit="step", leave=False)
        for index, (t, x) in enumerate(solution, start=1):
            if callback is not None:
                callback(Step(index, steps, t, x, run.posterior, run.nfe))
            if trajectory:
                states.append(x.clone())
                times.append(t)
        if not all_finite(x):
            self._explain_non_finite(denoiser, x_T, noise, condition)
        return Samples(
            x if x is not x_T else x.clone(),
            run.nfe,
            tuple(states) if trajectory else None,
            tuple(times) if trajectory else None,
            run.accepted,
            run.rejected,
        )

    def _inputs(
        self,
        denoiser: Denoiser,
        x_T: Tensor | None,
        n: int | None,
        shape: Sequence[int] | None,
        seed: int,
        indices: Sequence[int] | Tensor | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        condition: dict[str, Any],
    ) -> tuple[Tensor, Noise, dict[str, Any]]:
        if not isinstance(denoiser, Denoiser):
            raise ValueError(
                f"denoiser must be a trueward Denoiser, got {type(denoiser).__name__}; wrap your network with trueward.denoiser(network, schedule, prediction=...)."
            )
        if x_T is not None:
            if not isinstance(x_T, Tensor) or not x_T.is_floating_point() or x_T.ndim < 1 or x_T.numel() == 0:
                raise ValueError("x_T must be a non-empty floating-point tensor (batch, *shape).")
            if denoiser.shape is not None and tuple(x_T.shape[1:]) != denoiser.shape:
                raise ValueError(
                    f"x_T has samples of shape {tuple(x_T.shape[1:])}, but the denoiser takes {denoiser.shape}."
                )
            if n is not None and n != x_T.shape[0]:
                raise ValueError(f"n={n} disagrees with the {x_T.shape[0]} rows of x_T.")
            if not all_finite(x_T):
                raise ValueError("x_T holds NaN or infinite values.")
            n = x_T.shape[0]
        if indices is None:
            if n is None:
                raise ValueError("Say how many samples to draw: give n, indices or x_T.")
            if n < 1:
                raise ValueError(f"n must be at least 1, got {n}.")
        noise = Noise.rows(seed, n if indices is None else indices)  # type: ignore[arg-type]
        n = len(noise) if n is None else n
        if len(noise) != n or n < 1:
            raise ValueError(f"{len(noise)} indices were given for {n} samples.")
        device = torch.device(device) if device is not None else x_T.device if x_T is not None else denoiser.device
        dtype = dtype if dtype is not None else x_T.dtype if x_T is not None else denoiser.dtype
        if x_T is None:
            shape = denoiser.shape if shape is None else tuple(shape)
            if shape is None:
                raise ValueError("Say the shape of one sample: this denoiser does not know it.")
            if denoiser.shape is not None and shape != denoiser.shape:
                raise ValueError(f"shape={shape}, but the denoiser takes {denoiser.shape}.")
            x_T = self.prior(denoiser.schedule, noise, shape, dtype, device)
        return x_T.to(device, dtype), noise, check_condition(denoiser, condition, n, device)

    def _explain_non_finite(self, denoiser: Denoiser, x_T: Tensor, noise: Noise, condition: dict[str, Any]) -> None:
        """Runs the (reproducible) call again to say where it went wrong; the good case pays nothing for this."""
        run = self.start(denoiser, noise, **condition)
        t: float | Tensor = run.plan.times.values[0]
        for index, (reached, x) in enumerate(self.solve(run, x_T), start=1):
            if not bool(x.isfinite().all()):
                rows = (~x.reshape(x.shape[0], -1).isfinite().all(1)).sum().item()
                at = t if isinstance(t, float) else t.max().item()
                raise NonFiniteSamples(
                    f"The samples became NaN or infinite at step {index}, leaving t={at:.6g} ({rows} of {x.shape[0]} rows): check the model's output there."
                )
            t = reached
        raise NonFiniteSamples(
            "The model answered NaN or infinity once, but not when asked again: it is not deterministic."
        )


def all_finite(x: Tensor) -> bool:
    """No NaN or infinity in `x`: a finite sum proves it in one pass; only an infinite one needs a closer look."""
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())


@functools.lru_cache(maxsize=256)
def _plan(sampler: Sampler, schedule: Schedule) -> Plan:
    return sampler.make_plan(schedule)
