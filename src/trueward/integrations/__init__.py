"""In our users' world: models of other libraries come in, ours go out.

diffusers pipelines become denoisers and our samplers become diffusers schedulers; covariances, Discriminator Guidance and
rejection go into a pipeline without leaving diffusers; a k-diffusion model is a denoiser and the other way round; schedulers and samplers of other libraries are certified like ours. The libraries themselves are optional
and imported when first used.
"""

import importlib
from typing import Any

from trueward.integrations.edm import from_edm, is_edm_folder, load_edm, save_edm
from trueward.integrations.export import to_pipeline
from trueward.integrations.k_diffusion import from_k_diffusion, to_k_diffusion
from trueward.integrations.latent import LatentDenoiser
from trueward.integrations.pipelines import from_pipeline, is_pipeline_folder, load_pipeline
from trueward.integrations.scheduler_config import prediction_of, schedule_of, times_of_nodes, visited_nodes

# what needs diffusers itself, or rooms that a plain pipeline does not: imported when asked for
_LAZY = {
    "DiffRSPipeline": "diffrs_pipeline",
    "GuidedNetwork": "guided_network",
    "HeadedNetwork": "headed_network",
    "TruewardAncestralScheduler": "ancestral_scheduler",
    "TruewardDPMSolverScheduler": "dpm_solver_scheduler",
    "guide": "guided_network",
    "use_covariance": "pipeline_covariance",
}

__all__ = [
    "DiffRSPipeline",
    "GuidedNetwork",
    "HeadedNetwork",
    "LatentDenoiser",
    "TruewardAncestralScheduler",
    "TruewardDPMSolverScheduler",
    "from_edm",
    "from_k_diffusion",
    "from_pipeline",
    "guide",
    "is_edm_folder",
    "is_pipeline_folder",
    "load_edm",
    "load_pipeline",
    "prediction_of",
    "save_edm",
    "schedule_of",
    "times_of_nodes",
    "to_k_diffusion",
    "to_pipeline",
    "use_covariance",
    "visited_nodes",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
