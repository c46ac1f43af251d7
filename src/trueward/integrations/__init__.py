"""In our users' world: models of other libraries come in, ours go out.

diffusers pipelines become denoisers and our samplers become diffusers schedulers; a k-diffusion model is a denoiser and the
other way round; schedulers and samplers of other libraries are certified like ours. The libraries themselves are optional
and imported when first used.
"""

import importlib
from typing import Any

from trueward.integrations.export import to_pipeline
from trueward.integrations.k_diffusion import from_k_diffusion, to_k_diffusion
from trueward.integrations.latent import LatentDenoiser
from trueward.integrations.pipelines import from_pipeline, is_pipeline_folder, load_pipeline
from trueward.integrations.scheduler_config import prediction_of, schedule_of, times_of_nodes, visited_nodes

# classes that are subclasses of diffusers' own: their modules are imported when they are asked for
_LAZY = {"TruewardAncestralScheduler": "ancestral_scheduler", "TruewardDPMSolverScheduler": "dpm_solver_scheduler"}

__all__ = [
    "LatentDenoiser",
    "TruewardAncestralScheduler",
    "TruewardDPMSolverScheduler",
    "from_k_diffusion",
    "from_pipeline",
    "is_pipeline_folder",
    "load_pipeline",
    "prediction_of",
    "schedule_of",
    "times_of_nodes",
    "to_k_diffusion",
    "to_pipeline",
    "visited_nodes",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
