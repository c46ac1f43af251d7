r"""What is examined: anything that turns x_T into samples, seen through one small contract.

A :class:`Subject` runs with a given denoiser, schedule, x_T and number of steps, and says of itself what it knows: the order
it claims, whether it draws noise, how many evaluations it will spend, where its levels end, which options it has. Samplers of
trueward know all of that, a plain function nearly nothing; what a subject does not know is measured or left out.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.denoisers import Denoiser
from trueward.naming import look_up
from trueward.samplers import Ancestral, Sampler, sampler, sampler_names
from trueward.samplers.ancestral import COVARIANCES
from trueward.schedules import Schedule
from trueward.times import Levels, time_grid_names

# Families of foreign subjects, "prefix:name", and the function that opens them; imported only when asked for.
SOURCES: dict[str, str] = {
    "diffusers": "trueward.integrations.diffusers_schedulers:subject",
    "k_diffusion": "trueward.integrations.k_diffusion_samplers:subject",
}


@dataclass(frozen=True)
class Setting:
    """How a subject is run: a time grid (None is the subject's own) and further options."""

    grid: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        parts = [] if self.grid is None else [f"grid={self.grid}"]
        return ", ".join([*parts, *(f"{name}={value}" for name, value in self.options)]) or "defaults"


@dataclass(frozen=True)
class Outcome:
    """Samples (batch, *shape) and the number of evaluations that the subject reports, if it does."""

    x: Tensor
    reported_nfe: int | None = None


class Subject(ABC):
    """Something to certify.

    Attributes:
        name: what to call it in the certificate.
        claims: the order of convergence it claims, or None.
    """

    name: str
    claims: float | None
    # Errors below this are the rounding of the subject's own arithmetic, or of the reference (good to 1e-12 at scale one).
    round_off: float = 3e-11

    @abstractmethod
    def run(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x_T: Tensor,
        steps: int,
        *,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        setting: Setting = Setting(),
    ) -> Outcome:
        """Draws samples.

        Args:
            denoiser: the model; its schedule is `schedule`.
            x_T: (batch, *shape), the state at the start.
            steps: number of steps.
            seed, indices: identity of the rows, for subjects that have one; `indices` defaults to 0 ... batch-1.
            setting: grid and options.
        """

    @property
    def stochastic(self) -> bool | None:
        """Does it draw noise? None if only a run can tell."""
        return None

    @property
    def adaptive(self) -> bool:
        """Does it choose its own steps, so that `steps` means nothing?"""
        return False

    @property
    def schedules(self) -> Mapping[str, Schedule] | None:
        """The schedules to examine it under, by name, if it cannot take any; else None."""
        return None

    @property
    def grids(self) -> tuple[str, ...]:
        """Time grids it can be asked for by name in a :class:`Setting`."""
        return ()

    @property
    def own_grid(self) -> str:
        """What its own grid is called."""
        return "its own"

    def sweep(self) -> Mapping[str, tuple[Any, ...]]:
        """Options and the values worth trying, the default first."""
        return {}

    def nfe(self, schedule: Schedule, steps: int, setting: Setting) -> int | None:
        """Evaluations it says it will spend, or None."""
        return None

    def levels(self, schedule: Schedule, steps: int, setting: Setting) -> Levels | None:
        """The noise levels it visits, or None if unknown."""
        return None

    def steps_for(self, nfe: int, setting: Setting) -> int | None:
        """The number of steps whose cost is closest to `nfe` from below, or None if it cannot spend so little."""
        return nfe

    def even_steps(self, schedule: Schedule) -> tuple[str, tuple[int, ...]] | None:
        """Rising numbers of steps that it may treat better than others, after a clause that says which they are, or None."""
        return None

    def is_breakdown(self, error: Exception) -> bool:
        """Is this error the subject's way of saying that its samples became NaN?"""
        return False


class SamplerSubject(Subject):
    """A sampler of trueward: an instance, whose options are the base of all runs.

    One that reads a fitted covariance (analytic, sn, npr, ...) is given the exact one, which is what these estimate.
    """

    def __init__(self, base: Sampler, name: str | None = None, claims: float | None = None) -> None:
        if isinstance(base, Ancestral) and base.variance in COVARIANCES:
            base = dataclasses.replace(base, variance="posterior")
        self.base = base
        self.name = name or base.name
        self.claims = claims if claims is not None else self._order(base)
        self._made: dict[tuple[int, Setting], Sampler] = {}

    @staticmethod
    def _order(base: Sampler) -> float | None:
        """The order the sampler says it has; the lowest, where it depends on the number of steps (its remainder by 3, say)."""
        orders = []
        for steps in (base.steps, *range(20, 26)):
            try:
                made = dataclasses.replace(base, steps=steps)
            except ValueError:  # another number of steps than this base allows, e.g. of explicitly given times
                continue
            orders.append(getattr(made, "convergence_order", None) or getattr(made, "order", None))
        known = [order for order in orders if order is not None]
        return min(known) if known else None

    def sampler(self, steps: int, setting: Setting) -> Sampler:
        """The one instance of these options; all runs share it, as users' threads would."""
        key = (steps, setting)
        if key not in self._made:
            options: dict[str, Any] = dict(setting.options)
            if setting.grid is not None:
                options["grid"] = setting.grid
            if not self.adaptive:
                options["steps"] = steps
            self._made[key] = dataclasses.replace(self.base, **options)
        return self._made[key]

    def run(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x_T: Tensor,
        steps: int,
        *,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        setting: Setting = Setting(),
    ) -> Outcome:
        result = self.sampler(steps, setting).sample(denoiser, x_T, seed=seed, indices=indices)
        return Outcome(result.x, result.nfe)

    @property
    def stochastic(self) -> bool:
        return self.base.stochastic

    @property
    def adaptive(self) -> bool:
        from trueward.schedules import VPLinear

        return self.base.nfe(VPLinear()) is None

    @property
    def grids(self) -> tuple[str, ...]:
        return () if self.adaptive else tuple(time_grid_names())

    @property
    def own_grid(self) -> str:
        from trueward.times import time_grid

        return next((n for n in time_grid_names() if time_grid(n) == self.base.grid), str(self.base.grid))

    def sweep(self) -> Mapping[str, tuple[Any, ...]]:
        """Both values of switches; every word of an option that names its words; 0 and 1 for numbers; t_end = 0."""
        choices: dict[str, tuple[Any, ...]] = {}
        for field in dataclasses.fields(self.base):
            if field.name in ("steps", "grid", "t_start", "max_nfe"):
                continue
            now = getattr(self.base, field.name)
            values: list[Any] = [now]
            if field.name == "t_end":
                values += [0.0]
            elif field.name == "order":
                values += list(getattr(self.base, "orders", ()))
            elif isinstance(now, bool):
                values += [False, True]
            elif isinstance(now, (int, float)):
                values += [0, 1] if isinstance(now, int) else [0.0, 1.0]
            else:
                values += self._words(field.name)
            choices[field.name] = tuple(dict.fromkeys(values))
        return {name: values for name, values in choices.items() if len(values) > 1}

    def _words(self, option: str) -> list[str]:
        """The words an option knows, from the message that refuses an unknown one."""
        try:
            impossible: dict[str, Any] = {option: "?"}
            dataclasses.replace(self.base, **impossible)
        except ValueError as error:
            known = re.search(r"Known: (.*)\.$", str(error))
            return known.group(1).split(", ") if known else []
        except TypeError:
            return []
        return []

    def nfe(self, schedule: Schedule, steps: int, setting: Setting) -> int | None:
        return self.sampler(steps, setting).nfe(schedule)

    def levels(self, schedule: Schedule, steps: int, setting: Setting) -> Levels | None:
        return self.sampler(steps, setting).levels(schedule)

    def steps_for(self, nfe: int, setting: Setting) -> int | None:
        if self.adaptive:
            return None
        options = {f.name: getattr(self.base, f.name) for f in dataclasses.fields(self.base) if f.name != "steps"}
        options.update(dict(setting.options))
        try:
            return type(self.base).for_budget(nfe, **options).steps
        except ValueError:
            return None

    def is_breakdown(self, error: Exception) -> bool:
        return "samples became NaN" in str(error) or "answered NaN" in str(error)


class FunctionSubject(Subject):
    """A user's own sampler, ``f(denoiser, schedule, x_T, steps) -> x`` (or an object with `.x` and, maybe, `.nfe`).

    If it takes `seed` or `indices` by name, it is given them. ``f.order`` is read as the claimed order and ``f.nfe``, if it is
    callable, as the claimed cost ``f.nfe(schedule, steps)``.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None, claims: float | None = None) -> None:
        self.function = function
        self.name = str(name or getattr(function, "__name__", type(function).__name__))
        self.claims = claims if claims is not None else getattr(function, "order", None)
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            parameters = {}  # type: ignore[assignment]
        self._takes = {name for name in ("seed", "indices") if name in parameters}
        self._options = {
            name: p.default
            for name, p in parameters.items()
            if p.default is not inspect.Parameter.empty and name not in ("seed", "indices")
        }

    def run(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x_T: Tensor,
        steps: int,
        *,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        setting: Setting = Setting(),
    ) -> Outcome:
        extra: dict[str, Any] = dict(setting.options)
        if "seed" in self._takes:
            extra["seed"] = seed
        if "indices" in self._takes:
            extra["indices"] = list(indices) if indices is not None else list(range(x_T.shape[0]))
        answer = self.function(denoiser, schedule, x_T, steps, **extra)
        if isinstance(answer, Tensor):
            return Outcome(answer)
        x = getattr(answer, "x", None)
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{self.name} must return a tensor (or an object with one as .x), got {type(answer).__name__}."
            )
        return Outcome(x, getattr(answer, "nfe", None))

    def sweep(self) -> Mapping[str, tuple[Any, ...]]:
        """Both values of every keyword switch."""
        return {name: (value, not value) for name, value in self._options.items() if isinstance(value, bool)}

    def nfe(self, schedule: Schedule, steps: int, setting: Setting) -> int | None:
        claim = getattr(self.function, "nfe", None)
        return claim(schedule, steps) if callable(claim) else None


def subject(
    what: Any, *, name: str | None = None, claims: float | None = None, options: Mapping[str, Any] | None = None
) -> Subject:
    """Whatever can be certified, as a :class:`Subject`.

    Args:
        what: a sampler (instance, class or name), a foreign one by "source:name" (see `SOURCES`), a function
            ``f(denoiser, schedule, x_T, steps)``, or a Subject.
        name: what to call it; default: its own name.
        claims: the order it claims; default: what it says itself.
        options: options it is made with.

    Raises:
        ValueError: an unknown name (with the closest known one), or something that is none of these.
    """
    options = dict(options or {})
    if isinstance(what, str) and ":" in what:
        source, _, inner = what.partition(":")
        module, _, function = look_up("source of samplers", source, SOURCES).partition(":")
        made: Subject = getattr(importlib.import_module(module), function)(inner, **options)
        made.name, made.claims = name or made.name, claims if claims is not None else made.claims
        return made
    if isinstance(what, str):
        return SamplerSubject(sampler(what, **options), name or what, claims)
    if isinstance(what, type) and issubclass(what, Sampler):
        return SamplerSubject(what(**options), name, claims)
    if isinstance(what, Sampler):
        return SamplerSubject(dataclasses.replace(what, **options), name, claims)
    if isinstance(what, Subject):
        if options:
            raise ValueError(f"A Subject is made with its options already, got options={options}.")
        made = copy.copy(what)
        made.name, made.claims = name or what.name, what.claims if claims is None else claims
        return made
    if callable(what):
        if options:
            import functools

            bound = functools.partial(what, **options)
            functools.update_wrapper(bound, what)
            return FunctionSubject(bound, name, claims)
        return FunctionSubject(what, name, claims)
    raise ValueError(
        f"Cannot certify a {type(what).__name__}: give a sampler, its class or name ({', '.join(sampler_names())}), or a function f(denoiser, schedule, x_T, steps)."
    )


def clean_end(levels: Levels | None) -> bool | None:
    """Do the levels go on to the data themselves (sigma = 0)? None if unknown."""
    return None if levels is None else bool(levels.sigma[-1] == 0)


def largest_step(levels: Levels | None) -> float | None:
    """The largest step in half-log-SNR between noisy levels, or None if unknown."""
    if levels is None:
        return None
    steps = np.abs(np.diff(levels.half_log_snr[levels.sigma > 0]))
    return float(steps.max()) if len(steps) else None


def same_start(schedule: Schedule, shape: Sequence[int], rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """x_T for the checks: `rows` fixed normal draws at the scale of the schedule's prior."""
    generator = torch.Generator().manual_seed(20)
    noise = torch.randn(rows, *shape, dtype=torch.float64, generator=generator)
    return (noise * schedule.prior_std().item()).to(dtype)
