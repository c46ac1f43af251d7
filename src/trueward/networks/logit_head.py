"""From features to one number per row: the network of a critic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from trueward.networks.registry import network, network_config, register_network


def mean_and_spread(features: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch twice_channels"]:
    """Mean and standard deviation over positions: a defect in one corner moves the spread more than the mean."""
    positions = features.flatten(2)
    mean = positions.mean(-1, keepdim=True)
    spread = (positions - mean).square().mean(-1).add(1e-6).sqrt()  # Tensor.var is many times slower on the CPU
    return torch.cat([mean[..., 0], spread], dim=1)


@register_network
class LogitHead(nn.Module):
    """A trunk's last features, averaged over positions, through a small perceptron to one logit.

    Called as ``network(x, label, class_labels=None)`` like its trunk, and answers (batch,).

    Args:
        trunk: a network with `forward_features` and `features` (UNet, MLP, ...), or its description.
        frozen: leave the trunk as it is and learn the head alone; gradients with respect to x still pass through it.
        width: width of the hidden layer of the head.
        dropout: probability of dropping a feature before the head.
    """

    def __init__(
        self, trunk: nn.Module | Mapping[str, Any], frozen: bool = False, width: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.trunk = trunk if isinstance(trunk, nn.Module) else network(trunk)
        if not hasattr(self.trunk, "forward_features"):
            raise ValueError(
                f"The trunk must have forward_features, as UNet and MLP do; {type(self.trunk).__name__} has not."
            )
        self.config = {
            "network": "LogitHead",
            "trunk": network_config(self.trunk),
            "frozen": frozen,
            "width": width,
            "dropout": dropout,
        }
        self.frozen = frozen
        if frozen:
            self.trunk.requires_grad_(False).eval()
        features = int(self.trunk.features)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(2 * features)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * features, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.head[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head[-1].bias)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> LogitHead:
        """A frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def forward(
        self,
        x: Float[Tensor, "batch *shape"],
        label: Float[Tensor, " batch"],
        class_labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """One logit per row."""
        features = self.trunk.forward_features(x, label, class_labels)  # type: ignore[operator]
        pooled = mean_and_spread(features if features.ndim > 2 else features[:, :, None])
        return self.head(self.norm(pooled.to(self.norm.weight.dtype)))[:, 0]
