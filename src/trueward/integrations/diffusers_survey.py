"""The survey of diffusers' schedulers: which are measured, with which options, and which are left out and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trueward.certification.survey import Survey
from trueward.certification.survey import survey as measure
from trueward.integrations.diffusers_schedulers import SchedulerSubject, scheduler_names, subject

_DOWN_TO_NOISE = {"final_sigmas_type": "sigma_min"}  # noise prediction is refused by them down to no noise at all

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDIMScheduler", {}),
    ("DDIMParallelScheduler", {}),
    ("CogVideoXDDIMScheduler", {"snr_shift_scale": 1.0}),
    ("EulerDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("PNDMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    *(("DEISMultistepScheduler", {"solver_order": k}) for k in (1, 2, 3)),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    *(
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "solver_order": k, **_DOWN_TO_NOISE})
        for k in (1, 2, 3)
    ),
    *(("DPMSolverSinglestepScheduler", {"solver_order": k}) for k in (1, 2, 3)),
    *(
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver", "solver_order": k, **_DOWN_TO_NOISE})
        for k in (2, 3)
    ),
    *(("UniPCMultistepScheduler", {"solver_order": k}) for k in (1, 2, 3)),
    ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh1"}),
    ("UniPCMultistepScheduler", {"solver_order": 2, "predict_x0": False, **_DOWN_TO_NOISE}),
    ("EDMEulerScheduler", {}),
    *(("EDMDPMSolverMultistepScheduler", {"solver_order": k}) for k in (1, 2, 3)),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("DDPMScheduler", {}),
    ("DDPMParallelScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    *(("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": k}) for k in (1, 2, 3)),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("SASolverScheduler", {}),
)

_DISTILLED = "is for networks distilled to jump to the data, not for the flow of a diffusion model"
_TOKENS = "samples tokens, not numbers"
LEFT_OUT: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": _DISTILLED,
    "FlowMapEulerDiscreteScheduler": _DISTILLED,
    "FlowMatchLCMScheduler": _DISTILLED,
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "SCMScheduler": _DISTILLED,
    "CogVideoXDPMScheduler": "has a step of another signature than the others",
    "DDIMInverseScheduler": "goes from data to noise",
    "DPMSolverMultistepInverseScheduler": "goes from data to noise",
    "RePaintScheduler": "samples conditionally on a part of an image",
    "IPNDMScheduler": "computes with a table of its own, whatever table it is given",
}
_OTHER = "has a forward process or a step that certify knows no exact model for"


def survey(callback: Callable[[str], None] | None = None) -> Survey:
    """Measures all of :data:`VARIANTS` that the installed diffusers has, and sweeps the options of their classes.

    Raises:
        ValueError: if diffusers is missing.
    """
    known = scheduler_names()
    left_out, rows = dict(LEFT_OUT), []
    classes: dict[str, SchedulerSubject] = {}
    for name, options in VARIANTS:
        if name not in known:
            continue
        try:
            rows.append(subject(name, **options))
            classes.setdefault(name, subject(name))
        except ValueError as error:
            left_out[name] = str(error)
    examined = {made.scheduler.__name__ for made in rows}
    for name in known:
        if name in examined or name in left_out:
            continue
        try:
            rows.append(subject(name))  # one of another release than the one this list was written for
            classes[name] = subject(name)
        except ValueError as error:
            left_out[name] = _OTHER if "no exact model" in str(error) else str(error)
    return measure(
        "diffusers",
        rows,
        classes.values(),
        command="trueward certify diffusers --out certified-schedulers.md",
        options=_options,
        class_name=_class_name,
        left_out={name: left_out[name] for name in sorted(left_out) if name in known},
        not_swept=("fine-linear",),
        callback=callback,
    )


def _options(made: Any) -> dict[str, Any]:
    assert isinstance(made, SchedulerSubject)
    return dict(made.options)


def _class_name(made: Any) -> str:
    assert isinstance(made, SchedulerSubject)
    return made.scheduler.__name__
