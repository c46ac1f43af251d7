r"""Schedules by name."""

from __future__ import annotations

from typing import Any

from trueward.naming import look_up
from trueward.schedules.discrete import DiscreteSchedule
from trueward.schedules.flow_matching import FlowMatching
from trueward.schedules.forward_process import Schedule
from trueward.schedules.variance_exploding import EDM, VE
from trueward.schedules.variance_preserving import VPCosine, VPLinear

_NAMED: dict[str, Any] = {
    "vp-linear": VPLinear,
    "vp-cosine": VPCosine,
    "ve": VE,
    "edm": EDM,
    "flow": FlowMatching,
    "ddpm-linear": DiscreteSchedule.linear,
    "ddpm-cosine": DiscreteSchedule.cosine,
    "latent-diffusion": DiscreteSchedule.scaled_linear,
}


def schedule(name: str | Schedule, **options: Any) -> Schedule:
    """A schedule by its name: vp-linear, vp-cosine, ve, edm, flow, ddpm-linear, ddpm-cosine, latent-diffusion."""
    if isinstance(name, Schedule):
        return name
    return look_up("schedule", name, _NAMED)(**options)


def schedule_names() -> list[str]:
    """The names that :func:`schedule` knows."""
    return list(_NAMED)
