r"""The contract of a sampler: from noise to data, one level at a time.

A sampler is an immutable set of options. Everything that depends on the schedule is computed once, in float64, into a
*plan* (tables of coefficients, one entry per step) that is remembered; a step is then a linear combination of tensors::

    x_next = a[k] x + b[k] mean + c[k] noise

Everything that belongs to one call (the model, the noise, the history of a multistep method, the count of network
evaluations) lives in a :class:`Run` that the caller owns. A sampler therefore holds no state during or between calls, and
two threads may share one.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from trueward.denoisers import Denoiser, Posterior
from trueward.noise import Noise
from trueward.schedules import Schedule
from trueward.times import Levels, TimeGrid, time_grid

Coefficient: TypeAlias = float | Tensor
Level: TypeAlias = int | Tensor  # one level for the batch, or a level for every row, (batch,) int64


class NonFiniteSamples(ValueError):
    """The model's answers led to NaN or infinity; the message says where."""


class Table:
    """One coefficient for each step, float64: a float for one level, a tensor (batch, 1, ..., 1) for a level per row."""

    __slots__ = ("_devices", "_scalars", "values")

    def __init__(self, values: np.ndarray) -> None:
        self.values: list[float] = np.asarray(values, dtype=np.float64).tolist()
        self._devices: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._scalars: dict[torch.dtype, tuple[Coefficient, ...]] = {}

    def __len__(self) -> int:
        return len(self.values)

    def __call__(self, level: Level, x: Tensor) -> Coefficient:
        """The coefficient at `level`, ready to multiply `x`."""
        if isinstance(level, int):
            return self.values[level]
        key = (x.device, x.dtype)
        if key not in self._devices:
            self._devices[key] = torch.tensor(self.values, dtype=torch.float64).to(x.dtype).to(x.device)
        return self._devices[key][level].view((-1,) + (1,) * (x.ndim - 1))

    def scalar(self, level: int, x: Tensor) -> Coefficient:
        """The entry as a factor for ``torch.mul(x, ...)``: a tensor (), which costs half of a float on small x.

        Half-precision x gets the float: a half-precision coefficient would lose digits that the arithmetic keeps.
        """
        scalars = self._scalars.get(x.dtype)
        if scalars is None:
            exact = torch.tensor(self.values, dtype=torch.float64)
            whole = x.dtype in (torch.float32, torch.float64)
            scalars = self._scalars[x.dtype] = exact.to(x.dtype).unbind() if whole else tuple(self.values)
        return scalars[level]

    def time(self, level: Level) -> float | Tensor:
        """The entry as a time: a float, or float64 (batch,) on the device of `level` (the CPU if it has no float64)."""
        if isinstance(level, int):
            return self.values[level]
        level = level.cpu() if level.device.type == "mps" else level
        return torch.tensor(self.values, dtype=torch.float64, device=level.device)[level]


def combine(*terms: tuple[Coefficient, Tensor], out: Tensor | None = None) -> Tensor:
    """Sum of coefficient times tensor, written into `out` (which must not be one of the tensors but the first)."""
    (c, x), *rest = terms
    out = torch.mul(x, c, out=out)
    for c, x in rest:
        if isinstance(c, Tensor):
            out.addcmul_(x, c)
        elif c != 0.0:
            out.add_(x, alpha=c)
    return out


@dataclass(frozen=True, eq=False)
class Plan:
    """What a sampler has computed for a schedule: its levels; subclasses add tables of coefficients.

    `times` holds the time of every level as a :class:`Table`, for denoisers.
    """

    levels: Levels
    times: Table = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", Table(self.levels.t))

    @property
    def steps(self) -> int:
        """Number of steps, one less than levels."""
        return len(self.levels) - 1


class Transition(NamedTuple):
    """One Gaussian step x_s | x_t: `mean` (batch, *shape); `std` a float or a tensor that broadcasts against it."""

    mean: Tensor
    std: Coefficient


class Run:
    """One call of a sampler: the model, its condition, the noise of the rows, and what has been spent.

    Rows may be dropped, added or reordered between steps of a row-wise sampler by replacing `noise` and `condition`.
    """

    __slots__ = (
        "_scratch",
        "accepted",
        "condition",
        "denoiser",
        "history",
        "nfe",
        "noise",
        "plan",
        "posterior",
        "rejected",
    )

    def __init__(self, denoiser: Denoiser, plan: Plan, noise: Noise | None, condition: dict[str, Any]) -> None:
        self.denoiser, self.plan, self.noise, self.condition = denoiser, plan, noise, condition
        self.nfe = 0
        self.posterior: Posterior | None = None
        self.history: list[Any] = []
        self.accepted: int | None = None
        self.rejected: int | None = None
        self._scratch: dict[str, Tensor] = {}

    def denoise(self, x: Tensor, t: float | Tensor, rows: Tensor | None = None, stage: int = 0) -> Posterior:
        """Asks the model once, counts it and remembers the answer for callbacks.

        `rows` (int64) says which rows of the call `x` holds, if not all: their condition is picked. `stage` says which
        evaluation of a step this is, see :meth:`~trueward.denoisers.Denoiser.at_stage`.
        """
        self.nfe += 1
        condition = self.condition
        if rows is not None and condition:
            n = len(self.noise) if self.noise is not None else None
            condition = {
                k: v[rows.to(v.device)] if isinstance(v, Tensor) and v.ndim and v.shape[0] == n else v
                for k, v in condition.items()
            }
        model = self.denoiser if stage == 0 else self.denoiser.at_stage(stage)
        self.posterior = model(x, t, **condition)
        return self.posterior

    def time(self, level: Level) -> float | Tensor:
        """The time of a level, as the denoiser wants it: a float, or float64 (batch,)."""
        return self.plan.times.time(level)

    def scratch(self, name: str, like: Tensor) -> Tensor:
        """A buffer of the shape of `like` that lives as long as the call."""
        buffer = self._scratch.get(name)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = self._scratch[name] = torch.empty_like(like)
        return buffer

    def normal(self, draw: int | Tensor, like: Tensor) -> Tensor:
        """Standard normals in the shape of `like` from the rows' own streams."""
        if self.noise is None:
            raise ValueError("This sampler draws noise: give the call a seed (or a Noise).")
        return self.noise.normal(draw, like.shape[1:], like.dtype, like.device)


@dataclass(frozen=True)
class Step:
    """What `callback(step)` sees after each step.

    Attributes:
        index: number of steps made so far, 1 ... `steps`.
        steps: number of steps in all, or None for an adaptive sampler.
        t: the time reached: a float, or (batch,) where rows differ.
        x: (batch, *shape), the state. It is a live buffer: clone it to keep it.
        posterior: the model's last answer, or None.
        nfe: network evaluations so far.
    """

    index: int
    steps: int | None
    t: float | Tensor
    x: Tensor
    posterior: Posterior | None
    nfe: int


@dataclass(frozen=True)
class Samples:
    """The result of a sampler.

    Attributes:
        x: (batch, *shape), the samples.
        nfe: network evaluations spent on the batch (a guided pair counts as one; an adaptive sampler reports the calls made).
        trajectory: the states from x_T to the sample, if asked for.
        times: the times of these states.
        accepted, rejected: steps of an adaptive sampler.
    """

    x: Tensor
    nfe: int
    trajectory: tuple[Tensor, ...] | None = None
    times: tuple[float | Tensor, ...] | None = None
    accepted: int | None = None
    rejected: int | None = None


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


def check_condition(denoiser: Denoiser, condition: dict[str, Any], n: int, device: torch.device) -> dict[str, Any]:
    """The condition on the right device, `class_labels` as (n,) int64 in range.

    Raises:
        ValueError: labels for an unconditional model, missing from a conditional one, of wrong length, or out of range.
    """
    condition = dict(condition)
    labels = condition.get("class_labels")
    if denoiser.num_classes is None:
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in condition.items() if v is not None}
    if labels is None:
        labels = denoiser.num_classes  # "no class"
    labels = torch.as_tensor(labels, dtype=torch.int64, device=device)
    labels = labels.expand(n) if labels.ndim == 0 else labels
    if labels.shape != (n,):
        raise ValueError(f"class_labels must be one label or one per sample, ({n},), got shape {tuple(labels.shape)}.")
    if bool(((labels < 0) | (labels > denoiser.num_classes)).any()):
        worst = labels[(labels < 0) | (labels > denoiser.num_classes)][0].item()
        raise ValueError(
            f"class_labels must lie in 0 ... {denoiser.num_classes - 1} ({denoiser.num_classes} means no class), got {worst}."
        )
    return {**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in condition.items()}, "class_labels": labels}
