r"""diffusers' schedulers as subjects of :func:`trueward.certification.certify`.

A scheduler is run as a pipeline runs it: ``set_timesteps``, then for every timestep ``scale_model_input``, the model,
``step``. One scheduler object serves all calls of the same options, as it does in a pipeline. The model is an exact truth,
asked at the noise level of the timestep that the scheduler names, because that is all a network is told: what a scheduler
rounds there is an error of the scheduler. Schedulers in the coordinates y = x / alpha (Euler, Heun, LMS ...) are given and
return their own.

Noise is drawn from one generator for each row, which diffusers offers, so that a row can keep its identity.

Three families of schedulers are known: those on a table of betas, told the noise by the index of a node; those of EDM, told
log(sigma) / 4 and answering for the network's preconditioning themselves; those of flow matching, told 1000 t and given the
velocity eps - x_0.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
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
from trueward.schedules import EDM, DiscreteSchedule, FlowMatching, Schedule, VPLinear
from trueward.times import Levels

# The order that a scheduler's name or documentation stands for, where `solver_order` does not say it.
_ORDERS = {
    "DDIMScheduler": 1, "DDIMParallelScheduler": 1, "EulerDiscreteScheduler": 1, "EDMEulerScheduler": 1,
    "FlowMatchEulerDiscreteScheduler": 1, "HeunDiscreteScheduler": 2, "FlowMatchHeunDiscreteScheduler": 2,
    "KDPM2DiscreteScheduler": 2,
}  # fmt: skip

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
# EDM's schedulers name theirs by a word of one option.
_WORD_GRIDS: dict[str, dict[str, Any]] = {
    "karras": {"sigma_schedule": "karras"},
    "exponential": {"sigma_schedule": "exponential"},
}

# Not options of the solver: they describe the model or the forward process, or cut off what the exact model says.
_FIXED = {
    "prediction_type", "beta_schedule", "variance_type", "rescale_betas_zero_snr", "use_flow_sigmas", "clip_sample",
    "use_dynamic_shifting", "time_shift_type", "timestep_type", "thresholding", "timestep_spacing", "sigma_schedule",
    "invert_sigmas",
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
        default = self._parameters["solver_order"].default if "solver_order" in self._parameters else None
        self.claims = options.get("solver_order", default or _ORDERS.get(scheduler.__name__))
        if isinstance(self.claims, int) and options.get("algorithm_type", "").startswith("sde"):
            self.claims = None
        self._made: dict[tuple[Setting, Schedule], Any] = {}
        self._visited: dict[tuple[Setting, Schedule, int], Levels] = {}

    @functools.cached_property
    def schedules(self) -> Mapping[str, Schedule]:  # type: ignore[override]
        """The tables of DDPM, latent diffusion and Improved DDPM, with all their nodes, and a fine one.

        The fine table has 20000 nodes on the process of VP linear: what a scheduler rounds to a node matters there a twentieth
        as much, so that the order of the solver itself shows.
        """
        return {
            "ddpm-linear": DiscreteSchedule.linear(half_log_snr_clip=-20.0),
            "scaled-linear": DiscreteSchedule.scaled_linear(half_log_snr_clip=-20.0),
            "ddpm-cosine": DiscreteSchedule.cosine(half_log_snr_clip=-20.0),
            "fine-linear": fine_table(),
        }

    @property
    def _grids(self) -> dict[str, dict[str, Any]]:
        known = _WORD_GRIDS if "sigma_schedule" in self._parameters else _GRIDS
        return {name: options for name, options in known.items() if options.keys() <= self._parameters.keys()}

    @property
    def grids(self) -> tuple[str, ...]:
        return tuple(self._grids)

    @property
    def own_grid(self) -> str:
        for name, options in self._grids.items():
            if options.items() <= self.options.items():
                return name
        for option in ("timestep_spacing", "sigma_schedule"):
            if option in self._parameters:
                return str(self.options.get(option, self._parameters[option].default))
        return "its own"

    def even_steps(self, schedule: Schedule) -> tuple[str, tuple[int, ...]] | None:
        """Divisors of the number of training steps, each at least twice the one before."""
        if not isinstance(schedule, DiscreteSchedule):
            return None
        counts: list[int] = []
        for n in range(20, schedule.nodes // 5 + 1):
            if schedule.nodes % n == 0 and (not counts or n >= 2 * counts[-1]) and len(counts) < 4:
                counts.append(n)
        return (f"which divide the {schedule.nodes} training steps", tuple(counts)) if len(counts) >= 3 else None

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
        key = (setting, schedule)
        try:
            with _quiet():
                if key not in self._made:
                    grid = {} if setting.grid is None else look_up("time grid", setting.grid, self._grids)
                    fixed = {"clip_sample": False} if "clip_sample" in self._parameters else {}
                    options = {**fixed, **self.options, **grid, **dict(setting.options)}
                    self._made[key] = self.scheduler(**self._process(schedule), **options)
                scheduler = self._made[key]
                scheduler.set_timesteps(steps)
        except (NotImplementedError, ImportError) as error:  # how diffusers refuses a combination of options
            raise ValueError(str(error)) from error
        return scheduler

    def _process(self, schedule: Schedule) -> dict[str, Any]:
        """The options that describe the forward process."""
        if not isinstance(schedule, DiscreteSchedule) or schedule.nodes != len(schedule.betas):
            raise ValueError(f"{self.name} needs a DiscreteSchedule with all its nodes, got {type(schedule).__name__}.")
        process: dict[str, Any] = {"num_train_timesteps": len(schedule.betas), "trained_betas": list(schedule.betas)}
        if schedule == self.schedules["ddpm-cosine"]:
            process["beta_schedule"] = "squaredcos_cap_v2"  # by which some round their timesteps in another way
        return process

    def _time(self, scheduler: Any, schedule: Schedule, timestep: Tensor) -> float:
        """The time at which the model is asked: that of the timestep the scheduler names."""
        t = (float(timestep) + 1.0) / len(scheduler.betas)
        return min(max(t, schedule.t_min), schedule.t_max)

    def _answer(self, denoiser: Denoiser, scheduler: Any, x: Tensor, t: float, timestep: Tensor) -> Tensor:
        """What a network of the kind the scheduler expects would say."""
        return denoiser(scheduler.scale_model_input(x, timestep), t).eps

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
        scaled = self._in_units_of_alpha(scheduler)
        rows = indices if indices is not None else range(x_T.shape[0])
        takes = inspect.signature(scheduler.step).parameters
        noise = [_generator(seed, i) for i in rows]
        extra = {"generator": noise} if "generator" in takes else {}
        x = x_T / schedule.at(float(levels.t[0]))[0] if scaled else x_T
        with torch.no_grad(), _quiet():
            for timestep in scheduler.timesteps:
                t = self._time(scheduler, schedule, timestep)
                x = scheduler.step(self._answer(denoiser, scheduler, x, t, timestep), timestep, x, **extra).prev_sample
        return Outcome(x * levels.alpha[-1] if scaled else x)

    def nfe(self, schedule: Schedule, steps: int, setting: Setting) -> int:
        """One evaluation for each timestep."""
        return len(self._prepared(schedule, steps, setting).timesteps)

    def levels(self, schedule: Schedule, steps: int, setting: Setting) -> Levels:
        key = setting, schedule, steps
        if key not in self._visited:
            self._visited[key] = self._levels(self._prepared(schedule, steps, setting), schedule)
        return self._visited[key]

    def _levels(self, scheduler: Any, schedule: Schedule) -> Levels:
        """The noise levels the scheduler computes with, each once."""
        t, clean = self._noise_levels(scheduler, schedule)
        times = t.clamp(schedule.t_min, schedule.t_max).numpy()
        times = times[np.concatenate([[True], np.diff(times) < 0])]
        return Levels.of(schedule, times, clean=clean)

    def _noise_levels(self, scheduler: Any, schedule: Schedule) -> tuple[Tensor, bool]:
        """Times of its noisy levels in order, and whether it goes on to the data."""
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is not None and len(sigmas) <= len(scheduler.timesteps) + 1:
            sigma = torch.as_tensor(sigmas, dtype=torch.float64)
            return schedule.time_of_log_snr(-2.0 * torch.log(sigma[sigma > 0])), bool(sigma[-1] == 0)
        t = (scheduler.timesteps.to(torch.float64) + 1.0) / len(scheduler.betas)
        return t, bool(scheduler.config.get("set_alpha_to_one", True))

    def _in_units_of_alpha(self, scheduler: Any) -> bool:
        """Does the scheduler carry x / alpha instead of x?"""
        return float(scheduler.init_noise_sigma) != 1.0

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


class EDMSchedulerSubject(SchedulerSubject):
    """A scheduler that computes D = c_skip x + c_out F itself from what the network F says (Karras et al. 2022, table 1)."""

    @functools.cached_property
    def schedules(self) -> Mapping[str, Schedule]:  # type: ignore[override]
        return {"edm": EDM()}

    def _process(self, schedule: Schedule) -> dict[str, Any]:
        if not isinstance(schedule, EDM):
            raise ValueError(f"{self.name} needs the schedule EDM, got {type(schedule).__name__}.")
        return {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}

    def _time(self, scheduler: Any, schedule: Schedule, timestep: Tensor) -> float:
        return min(max(math.exp(4.0 * float(timestep)), schedule.t_min), schedule.t_max)

    def _answer(self, denoiser: Denoiser, scheduler: Any, x: Tensor, t: float, timestep: Tensor) -> Tensor:
        scheduler.scale_model_input(x, timestep)  # which finds the scheduler's place, as in a pipeline
        data = scheduler.config.sigma_data
        c_skip, c_out = data**2 / (t**2 + data**2), t * data / math.sqrt(t**2 + data**2)
        return (denoiser(x, t).mean - c_skip * x) / c_out

    def _in_units_of_alpha(self, scheduler: Any) -> bool:
        return False  # alpha is 1; init_noise_sigma scales the draw of the start, which is given here


class FlowSchedulerSubject(SchedulerSubject):
    """A scheduler of x_t = (1 - t) x_0 + t eps, given the velocity eps - x_0 at 1000 t."""

    @functools.cached_property
    def schedules(self) -> Mapping[str, Schedule]:  # type: ignore[override]
        # schedulers start at t = 1, where alpha is 0; so near to it that the difference is below their rounding
        return {"flow": FlowMatching(t_max=1.0 - 1e-6)}

    def _process(self, schedule: Schedule) -> dict[str, Any]:
        if not isinstance(schedule, FlowMatching):
            raise ValueError(f"{self.name} needs the schedule FlowMatching, got {type(schedule).__name__}.")
        return {}

    def _time(self, scheduler: Any, schedule: Schedule, timestep: Tensor) -> float:
        return min(max(float(timestep) / scheduler.config.num_train_timesteps, schedule.t_min), schedule.t_max)

    def _answer(self, denoiser: Denoiser, scheduler: Any, x: Tensor, t: float, timestep: Tensor) -> Tensor:
        posterior = denoiser(x, t)
        return posterior.eps - posterior.mean

    def _noise_levels(self, scheduler: Any, schedule: Schedule) -> tuple[Tensor, bool]:
        sigmas = torch.as_tensor(scheduler.sigmas, dtype=torch.float64)
        return sigmas[sigmas > 0], bool(sigmas[-1] == 0)

    def _in_units_of_alpha(self, scheduler: Any) -> bool:
        return False


@functools.cache
def fine_table(nodes: int = 20_000) -> DiscreteSchedule:
    """The process of VP linear from t = 0.001 to 1 on evenly spaced nodes."""
    t = torch.linspace(1e-3, 1.0, nodes, dtype=torch.float64)
    return DiscreteSchedule.from_alphas_cumprod(torch.exp(2.0 * VPLinear().log_alpha(t)), half_log_snr_clip=-20.0)


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

    ours = [n for n in integrations.__all__ if n.endswith("Scheduler")]
    check_name("scheduler of diffusers", name, [*scheduler_names(), *ours])
    scheduler = getattr(integrations if name in ours else peer("diffusers"), name)
    try:
        parameters = inspect.signature(scheduler.__init__).parameters
    except ImportError as error:  # how diffusers stands for a class whose own optional library is missing
        raise ValueError(" ".join(str(error).split())) from error
    if "trained_betas" in parameters:
        family: type[SchedulerSubject] = SchedulerSubject
    elif {"sigma_data", "sigma_schedule"} <= parameters.keys():
        family = EDMSchedulerSubject
    elif name.startswith("FlowMatch") and "shift" in parameters:
        family = FlowSchedulerSubject
    else:
        raise ValueError(f"{name} does not work on a table of betas; certify knows no exact model for it.")
    for option in options:
        check_name(f"option of {name}", option, list(parameters)[1:])
    return family(scheduler, name, **options)


def scheduler_names() -> list[str]:
    """The names of all scheduler classes of the installed diffusers."""
    return [n for n in dir(peer("diffusers")) if n.endswith("Scheduler") and not n.startswith("Flax")]
