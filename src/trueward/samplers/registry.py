"""Samplers by name, and a place for your own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from trueward.naming import check_name, look_up
from trueward.samplers.ancestral import DDIM, Ancestral
from trueward.samplers.dpm_adaptive import DPMSolverAdaptive
from trueward.samplers.dpm_multistep import DPMSolverMultistep, DPMSolverSDE
from trueward.samplers.dpm_singlestep import DPMSolverFast, DPMSolverSinglestep
from trueward.samplers.edm import EDMHeun
from trueward.samplers.probability_flow import ProbabilityFlow
from trueward.samplers.sampler import Sampler


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., Sampler]
    preset: dict[str, Any]

    def check(self, name: str, options: dict[str, Any]) -> None:
        """Names an unknown option before the constructor stumbles over it."""
        if isinstance(self.factory, type):
            known = [f.name for f in fields(self.factory)]  # type: ignore[arg-type]
            for option in options:
                check_name(f"option of {name}", option, known)


_REGISTRY: dict[str, _Entry] = {}


def register_sampler(name: str, factory: Callable[..., Sampler], **preset: Any) -> None:
    """Makes a sampler known by a name, here and on the command line.

    Args:
        name: what :func:`sampler` is asked for.
        factory: a :class:`~trueward.samplers.sampler.Sampler` class, or any function that takes `steps` and options.
        **preset: options that the name stands for; whoever asks may override them.

    Raises:
        ValueError: if the name is taken, or cannot be written in a list of samplers.
    """
    if name in _REGISTRY:
        raise ValueError(f"There is a sampler {name!r} already; choose another name.")
    if not name or any(c in name for c in ",:= "):
        raise ValueError(f"A sampler's name is not empty and has no comma, colon, equals sign or blank, got {name!r}.")
    _REGISTRY[name] = _Entry(factory, dict(preset))


def sampler(name: str | Sampler, steps: int | None = None, nfe: int | None = None, **options: Any) -> Sampler:
    """A sampler by its name.

    Args:
        name: one of :func:`sampler_names`; a sampler passes through.
        steps: number of steps (see each sampler for what a step costs).
        nfe: instead of `steps`, a budget of network evaluations: as much of it as the sampler can use.
        **options: see the sampler.

    Raises:
        ValueError: for an unknown name or option (with the closest known one), or both `steps` and `nfe`.
    """
    if isinstance(name, Sampler):
        if steps is not None or nfe is not None or options:
            raise ValueError("This is a sampler already: its options are set where it is made.")
        return name
    if steps is not None and nfe is not None:
        raise ValueError(f"Give steps or nfe, not both (steps={steps}, nfe={nfe}).")
    entry = look_up("sampler", name, _REGISTRY)
    options = {**entry.preset, **options}
    entry.check(name, options)
    if nfe is not None:
        if not isinstance(nfe, int) or isinstance(nfe, bool) or nfe < 1:
            raise ValueError(f"nfe must be a whole number >= 1, got {nfe!r}.")
        for_budget = getattr(entry.factory, "for_budget", None)
        if for_budget is None:
            raise ValueError(f"{name} cannot be made for a number of network evaluations: give steps.")
        return for_budget(nfe, **options)
    return entry.factory(**options) if steps is None else entry.factory(steps=steps, **options)


def sampler_names() -> list[str]:
    """The names that :func:`sampler` knows."""
    return list(_REGISTRY)


register_sampler("ddpm", Ancestral)
register_sampler("ddim", DDIM)
register_sampler("edm", EDMHeun)
for _kind in ("analytic", "sn", "npr"):  # their denoisers carry a fitted covariance, see trueward.covariance
    register_sampler(f"{_kind}-ddpm", Ancestral, variance=_kind)
    register_sampler(f"{_kind}-ddim", DDIM, variance=_kind)
register_sampler("ode", ProbabilityFlow)
register_sampler("dpm-solver", DPMSolverFast)
register_sampler("dpm-solver-2", DPMSolverSinglestep, algorithm="noise", order=2)
register_sampler("dpm-solver-3", DPMSolverSinglestep, algorithm="noise", order=3)
register_sampler("dpm-solver-adaptive", DPMSolverAdaptive, algorithm="noise")
register_sampler("dpm-solver++", DPMSolverMultistep)
register_sampler("dpm-solver++2s", DPMSolverSinglestep)
register_sampler("dpm-solver++3s", DPMSolverSinglestep, order=3)
register_sampler("dpm-solver++3m", DPMSolverMultistep, order=3)
register_sampler("dpm-solver++sde", DPMSolverSDE)
register_sampler("dpm-solver++adaptive", DPMSolverAdaptive)
