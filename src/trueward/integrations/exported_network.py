"""A trueward network as a diffusers model, so that a pipeline can hold, save and load it.

diffusers knows no architectures but its own, so a folder with such a network is opened where trueward is installed, after
``import trueward.integrations.exported_network``. This module needs diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trueward.integrations.peers import peer
from trueward.networks import network as build

peer("diffusers")
from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin  # noqa: E402
from diffusers.utils import BaseOutput  # noqa: E402


@dataclass
class TruewardNetworkOutput(BaseOutput):
    """The network's answer, (batch, channels, height, width)."""

    sample: Tensor


class TruewardNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A registered network of trueward that is called like a `UNet2DModel`.

    Args:
        description: what it is built from, see :func:`trueward.networks.network`.
        in_channels, sample_size: shape of one sample.
        num_class_embeds: number of class embeddings (the last one means "no class"), or None.
    """

    config: Any  # registered by the constructor, as diffusers has it

    @register_to_config
    def __init__(
        self,
        description: dict[str, Any],
        in_channels: int = 1,
        sample_size: int | tuple[int, int] = 28,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        self.network = build(description)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> TruewardNetworkOutput | tuple[Tensor]:
        """The network's answer.

        Args:
            sample: (batch, channels, height, width).
            timestep: () or (batch,).
            class_labels: (batch,); None means "no class" for a class-conditional network.
            return_dict: False returns a tuple.
        """
        label = torch.as_tensor(timestep, device=sample.device, dtype=torch.float32).expand(sample.shape[0])
        condition = {}
        if self.config.num_class_embeds is not None:
            none = self.config.num_class_embeds - 1
            condition["class_labels"] = (
                torch.full((sample.shape[0],), none, device=sample.device) if class_labels is None else class_labels
            )
        answer = self.network(sample, label, **condition)
        return TruewardNetworkOutput(answer) if return_dict else (answer,)
