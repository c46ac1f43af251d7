r"""A fitted covariance put into a diffusers pipeline: what ``trueward fit-covariance FOLDER`` stored, in one line.

analytic, analytic-residual    one number for every node, in the scheduler's configuration
sn, npr                        a head on the network (:mod:`trueward.integrations.headed_network`) and a scheduler that reads it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trueward.covariance import AnalyticCovariance, LearnedCovariance, with_covariance
from trueward.denoisers import NetworkDenoiser
from trueward.integrations.latent import LatentDenoiser
from trueward.integrations.pipelines import WRAPPERS, from_pipeline
from trueward.integrations.visited_levels import whole_schedule
from trueward.naming import check_name
from trueward.samplers.ancestral import COVARIANCES
from trueward.schedules import DiscreteSchedule


def use_covariance(
    pipeline: Any, kind: str = "analytic", folder: str | Path | None = None, *, eta: float = 1.0, **options: Any
) -> Any:
    """The pipeline, sampling with a covariance that was fitted to it: Analytic-, SN- or NPR-DPM.

    Its scheduler becomes a ``TruewardAncestralScheduler``; for sn and npr its network becomes a ``HeadedNetwork``.

    Args:
        pipeline: on a table of betas; it is changed.
        kind: analytic, analytic-residual, sn or npr.
        folder: where ``trueward fit-covariance`` stored it; default: where the pipeline was loaded from.
        eta: 1 is DDPM, 0 is DDIM.
        **options: further options of the scheduler, e.g. ``clip_sigma_pixels=2.0``.

    Returns:
        the pipeline.

    Raises:
        ValueError: nothing stored, a kind that no scheduler can hold (matrices), another model or schedule, a network that
            predicts variances of its own.
    """
    check_name("covariance", kind, [name for name in COVARIANCES if not name.endswith("-full")])
    name = "unet" if "unet" in pipeline.components else "transformer"
    network = pipeline.components.get(name)
    if type(network).__name__ in WRAPPERS:
        raise ValueError(
            f"This pipeline holds a {type(network).__name__} already: put the covariance on the plain network first."
        )
    model = from_pipeline(pipeline)
    latent = isinstance(model, LatentDenoiser)
    inner = model.inner if isinstance(model, LatentDenoiser) else model
    assert isinstance(inner, NetworkDenoiser)
    if not isinstance(inner.schedule, DiscreteSchedule):
        raise ValueError(f"{type(pipeline.scheduler).__name__} has no table of betas, so it has no ancestral steps.")
    folder = Path(str(pipeline.name_or_path)) if folder is None else Path(folder)
    covariance = with_covariance(inner, kind, folder)
    # pixels are clipped where the model says so, latents never are
    clip = not latent and bool(pipeline.scheduler.config.get("clip_sample", True))
    options = {"eta": eta, "clip_sample": clip, **options}
    from trueward.integrations.ancestral_scheduler import TruewardAncestralScheduler

    whole = whole_schedule(pipeline.scheduler.config)
    if isinstance(covariance, AnalyticCovariance):
        times = inner.schedule.time_of_node(torch.arange(inner.schedule.nodes)).numpy()
        known = covariance.table.variance(times, kind, covariance.bounds)
        table = [*known.tolist(), *[float(known[-1])] * (whole.nodes - len(known))]  # nodes too noisy to be visited
        pipeline.scheduler = TruewardAncestralScheduler.analytic(pipeline.scheduler, table, **options)
        return pipeline
    from trueward.integrations.headed_network import HeadedNetwork

    assert isinstance(covariance, LearnedCovariance)
    headed = HeadedNetwork.of(network, covariance, list(whole.betas))
    scheduler = TruewardAncestralScheduler.learned(pipeline.scheduler, kind, **options)
    setattr(pipeline, name, headed)
    pipeline.scheduler = scheduler
    return pipeline
