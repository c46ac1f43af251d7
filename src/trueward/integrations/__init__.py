"""In our users' world: models of other libraries come in, ours go out.

diffusers pipelines become denoisers and our samplers become diffusers schedulers; a k-diffusion model is a denoiser and the
other way round; schedulers and samplers of other libraries are certified like ours. The libraries themselves are optional
and imported when first used.
"""

from trueward.integrations.latent import LatentDenoiser
from trueward.integrations.pipelines import from_pipeline, is_pipeline_folder, load_pipeline
from trueward.integrations.scheduler_config import prediction_of, schedule_of, times_of_nodes, visited_nodes

__all__ = [
    "LatentDenoiser",
    "from_pipeline",
    "is_pipeline_folder",
    "load_pipeline",
    "prediction_of",
    "schedule_of",
    "times_of_nodes",
    "visited_nodes",
]
