r"""diffusers' schedulers as subjects of :func:`trueward.certification.certify`.

A scheduler is run as a pipeline runs it: ``set_timesteps``, then for every timestep ``scale_model_input``, the model,
``step``. One scheduler object serves all calls of the same options, as it does in a pipeline. The model is an exact truth,
asked at the noise level of the timestep that the scheduler names, because that is all a network is told: what a scheduler
rounds there is an error of the scheduler. Schedulers in the coordinates y = x / alpha (Euler, Heun, LMS ...) are given and
return their own.

Noise is drawn from one generator for each row, which diffusers offers, so that a row can keep its identity.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.certification import Outcome, Setting, Subject
from trueward.denoisers import Denoiser
from trueward.integrations.peers import peer
from trueward.naming import look_up
from trueward.schedules import DiscreteSchedule, Schedule
from trueward.times import Levels

# The order that a scheduler's name or documentation stands for, where `solver_order` does not say it.
_ORDERS = {"DDIMScheduler": 1, "EulerDiscreteScheduler": 1, "HeunDiscreteScheduler": 2, "KDPM2DiscreteScheduler": 2}

# Spacings of time that schedulers offer, and the options that ask for them.
_GRIDS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "log-snr": {"use_lu_lambdas": True},
}

# Not options of the solver: they describe the model or the forward process, or cut off what the exact model says.
_FIXED = {
    "prediction_type", "beta_schedule", "variance_type", "rescale_betas_zero_snr", "use_flow_sigmas", "clip_sample",
    "use_dynamic_shifting", "time_shift_type", "timestep_type", "thresholding", "timestep_spacing",
    *(option for options in _GRIDS.values() for option in options),
}  # fmt: skip


class SchedulerSubject(Subject):
    """A scheduler class of diffusers with base options.

    Its coefficients are float32, so errors below 1e-5 are its rounding.
    """

    round_off = 1e-5

    def __init__(self, scheduler: type, name: str, **options: Any) -> None:
        self.scheduler, self.name, self.options = scheduler, name, options
        self._parameters = inspect.signature(scheduler.__init__).parameters  # type: ignore[misc]
        if "trained_betas" not in self._parameters:
            raise ValueError(f"{name} does not work on a table of betas; certify knows no exact model for it.")
        default = self._parameters["solver_order"].default if "solver_order" in self._parameters else None
        self.claims = options.get("solver_order", default or _ORDERS.get(scheduler.__name__))
        if isinstance(self.claims, int) and options.get("algorithm_type", "").startswith("sde"):
            self.claims = None
        self._made: dict[tuple[Setting, Schedule], Any] = {}

    @functools.cached_property
    def schedules(self) -> Mapping[str, Schedule]:  # type: ignore[override]
        """The tables of DDPM, latent diffusion and Improved DDPM, with all their nodes."""
        return {
            "ddpm-linear": DiscreteSchedule.linear(half_log_snr_clip=-20.0),
            "scaled-linear": DiscreteSchedule.scaled_linear(half_log_snr_clip=-20.0),
            "ddpm-cosine": DiscreteSchedule.cosine(half_log_snr_clip=-20.0),
        }

    @property
    def grids(self) -> tuple[str, ...]:
        return tuple(name for name, options in _GRIDS.items() if options.keys() <= self._parameters.keys())

    @property
    def own_grid(self) -> str:
        for name, options in _GRIDS.items():
            if options.items() <= self.options.items():
                return name
        spacing = self._parameters.get("timestep_spacing")
        return str(spacing.default) if spacing is not None else "its own"

    def sweep(self) -> Mapping[str, tuple[Any, ...]]:
        """Switches, options annotated with the words they take, and solver orders 1 to 3."""
        hints = typing.get_type_hints(self.scheduler.__init__)  # type: ignore[misc]
        choices: dict[str, tuple[Any, ...]] = {}
        for name, parameter in self._parameters.items():
            now = self.options.get(name, parameter.default)
            words = tuple(w for w in typing.get_args(hints.get(name)) if isinstance(w, str))
            if name in _FIXED:
                continue
            if isinstance(now, bool):
                choices[name] = (now, not now)
            elif name == "solver_order":
                choices[name] = tuple(dict.fromkeys((now, 1, 2, 3)))
            elif words and isinstance(now, str):
                choices[name] = tuple(dict.fromkeys((now, *words)))
        return choices

    def _prepared(self, schedule: Schedule, steps: int, setting: Setting) -> Any:
        """The scheduler of these options, with its timesteps set."""
        if not isinstance(schedule, DiscreteSchedule) or schedule.nodes != len(schedule.betas):
            raise ValueError(f"{self.name} needs a DiscreteSchedule with all its nodes, got {type(schedule).__name__}.")
        key = (setting, schedule)
        try:
            with _quiet():
                if key not in self._made:
                    grid = {} if setting.grid is None else look_up("time grid", setting.grid, _GRIDS)
                    fixed = {"clip_sample": False} if "clip_sample" in self._parameters else {}
                    options = {**fixed, **self.options, **grid, **dict(setting.options)}
                    self._made[key] = self.scheduler(
                        num_train_timesteps=len(schedule.betas), trained_betas=list(schedule.betas), **options
                    )
                scheduler = self._made[key]
                scheduler.set_timesteps(steps)
        except (NotImplementedError, ImportError) as error:  # how diffusers refuses a combination of options
            raise ValueError(str(error)) from error
        return scheduler

    def run(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x_T: Tensor,
        steps: int,
        *,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        setting: Setting = Setting(),  # noqa: B008
    ) -> Outcome:
        scheduler = self._prepared(schedule, steps, setting)
        levels = self._levels(scheduler, schedule)
        scaled = _in_units_of_alpha(scheduler)
        rows = indices if indices is not None else range(x_T.shape[0])
        takes = inspect.signature(scheduler.step).parameters
        extra = {"generator": [_generator(seed, i) for i in rows]} if "generator" in takes else {}
        x = x_T / schedule.at(float(levels.t[0]))[0] if scaled else x_T
        with torch.no_grad(), _quiet():
            for timestep in scheduler.timesteps:
                t = min(max((float(timestep) + 1.0) / len(scheduler.betas), schedule.t_min), schedule.t_max)
                given = scheduler.scale_model_input(x, timestep)
                x = scheduler.step(denoiser(given, t).eps, timestep, x, **extra).prev_sample
        return Outcome(x * levels.alpha[-1] if scaled else x)

    def nfe(self, schedule: Schedule, steps: int, setting: Setting) -> int:
        """One evaluation for each timestep."""
        return len(self._prepared(schedule, steps, setting).timesteps)

    def levels(self, schedule: Schedule, steps: int, setting: Setting) -> Levels:
        return self._levels(self._prepared(schedule, steps, setting), schedule)

    def _levels(self, scheduler: Any, schedule: Schedule) -> Levels:
        """The noise levels the scheduler computes with, each once."""
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is not None and len(sigmas) <= len(scheduler.timesteps) + 1:
            sigma = torch.as_tensor(sigmas, dtype=torch.float64)
            clean = bool(sigma[-1] == 0)
            t = schedule.time_of_log_snr(-2.0 * torch.log(sigma[sigma > 0]))
        else:
            t = (scheduler.timesteps.to(torch.float64) + 1.0) / len(scheduler.betas)
            clean = bool(scheduler.config.get("set_alpha_to_one", True))
        times = t.clamp(schedule.t_min, schedule.t_max).numpy()
        times = times[np.concatenate([[True], np.diff(times) < 0])]
        return Levels.of(schedule, times, clean=clean)

    def steps_for(self, nfe: int, setting: Setting) -> int | None:
        """The most steps that cost at most `nfe`."""
        schedule = next(iter(self.schedules.values()))
        fitting = [n for n in range(1, nfe + 1) if self._cost(schedule, n, setting) <= nfe]
        return max(fitting, default=None)

    def _cost(self, schedule: Schedule, steps: int, setting: Setting) -> float:
        try:
            return self.nfe(schedule, steps, setting)
        except Exception:  # a number of steps that this scheduler cannot do
            return float("inf")


def _in_units_of_alpha(scheduler: Any) -> bool:
    """Does the scheduler carry x / alpha instead of x?"""
    return float(scheduler.init_noise_sigma) != 1.0


def _generator(seed: int, index: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' advice on every construction."""
    logging = peer("diffusers").utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def subject(name: str, **options: Any) -> SchedulerSubject:
    """A scheduler by the name of its class, e.g. ``subject("DPMSolverMultistepScheduler", solver_order=3)``.

    trueward's own schedulers are known too, by the names ``TruewardDPMSolverScheduler`` and ``TruewardAncestralScheduler``.

    Raises:
        ValueError: an unknown class or option (with the closest known one), or one without a table of betas.
    """
    from trueward import integrations
    from trueward.naming import check_name

    diffusers = peer("diffusers")
    known = [n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")]
    ours = [n for n in integrations.__all__ if n.endswith("Scheduler")]
    check_name("scheduler of diffusers", name, [*known, *ours])
    scheduler = getattr(integrations if name in ours else diffusers, name)
    for option in options:
        check_name(f"option of {name}", option, list(inspect.signature(scheduler.__init__).parameters)[1:])
    return SchedulerSubject(scheduler, name, **options)
