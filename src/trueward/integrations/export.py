r"""trueward models out: a pipeline folder that diffusers samples from.

What a diffusers pipeline can hold is a network asked with the node n of a table of betas, and a scheduler that knows the
table. So the denoiser must stand on a :class:`~trueward.DiscreteSchedule` with integer labels and predict eps, x0 or v. If its
network is diffusers' own (a `UNet2DModel`), plain diffusers opens the folder; a network of trueward is wrapped, and the folder
opens where trueward is installed (:mod:`trueward.integrations.exported_network`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trueward.denoisers import Denoiser, NetworkDenoiser
from trueward.integrations.peers import peer
from trueward.integrations.pipelines import PipelineNetwork
from trueward.integrations.scheduler_config import PREDICTIONS
from trueward.networks import network_config
from trueward.schedules import DiscreteSchedule

_NAMES = {ours: theirs for theirs, ours in PREDICTIONS.items() if theirs != "flow_prediction"}


def to_pipeline(denoiser: Denoiser, folder: str | Path | None = None, scheduler: str = "DDIMScheduler") -> Any:
    """A denoiser of images as a diffusers pipeline (and, if `folder` is given, as its folder).

    Args:
        denoiser: a network on a discrete schedule; of a class-conditional one, the pipeline calls "no class".
        folder: where to save the pipeline, as safetensors and JSON.
        scheduler: name of the diffusers scheduler it is given; any other can be put in its place.

    Returns:
        a ``diffusers.DDPMPipeline``. It clips predictions if and only if the denoiser has a `data_range` of [-1, 1].

    Raises:
        ValueError: if diffusers has no way to say what the denoiser is; the message names what is in the way.
    """
    diffusers = peer("diffusers")
    if not isinstance(denoiser, NetworkDenoiser):
        raise ValueError(f"{type(denoiser).__name__} cannot be exported: export the denoiser around the network.")
    schedule = denoiser.schedule
    if not isinstance(schedule, DiscreteSchedule):
        raise ValueError(
            f"diffusers pipelines stand on a table of betas, but this model stands on {type(schedule).__name__}: only models on a DiscreteSchedule can be exported."
        )
    nodes = torch.arange(schedule.nodes, dtype=torch.float64)
    if not torch.allclose(denoiser.label(schedule.time_of_node(nodes)), nodes, rtol=0, atol=1e-6):
        raise ValueError(
            "diffusers asks a network with the node 0, 1, 2, ..., but this one expects another time input."
        )
    if denoiser.prediction not in _NAMES:
        raise ValueError(
            f"diffusers has no scheduler for prediction={denoiser.prediction!r}; it knows {', '.join(_NAMES)}."
        )
    if denoiser.shape is None or len(denoiser.shape) != 3:
        raise ValueError(f"Pipelines make images (channels, height, width), but the model has shape={denoiser.shape}.")
    clips = denoiser.data_range == (-1.0, 1.0)
    options = {
        "num_train_timesteps": len(schedule.betas),
        "trained_betas": list(schedule.betas),
        "prediction_type": _NAMES[denoiser.prediction],
    }
    kind = getattr(diffusers, scheduler, None)
    if kind is None:
        raise ValueError(f"diffusers has no scheduler {scheduler!r}.")
    from inspect import signature

    known = signature(kind.__init__).parameters
    options |= {name: value for name, value in {"clip_sample": clips}.items() if name in known}
    pipeline = diffusers.DDPMPipeline(_model(denoiser), kind(**options))
    if folder is not None:
        pipeline.save_pretrained(str(folder), safe_serialization=True)
    return pipeline


def _model(denoiser: NetworkDenoiser) -> nn.Module:
    """The network as diffusers' own class, or wrapped as one."""
    network = denoiser.network
    if isinstance(network, PipelineNetwork):
        return network.model
    if isinstance(network, peer("diffusers").UNet2DModel):
        return network
    from trueward.integrations.exported_network import TruewardNetwork

    assert denoiser.shape is not None
    channels, height, width = denoiser.shape
    classes = denoiser.num_classes
    wrapped = TruewardNetwork(
        description=network_config(network),
        in_channels=channels,
        sample_size=height if height == width else (height, width),
        num_class_embeds=None if classes is None else classes + 1,
    )
    wrapped.network = network
    return wrapped.eval()
