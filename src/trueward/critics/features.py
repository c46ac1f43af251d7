r"""A critic on the features of the model it judges: what the frozen network has learnt about noisy data, and a shallow head.

    l(x_t, t) = head(features(x_t, t), log-SNR, class)

The head is all that is trained and stored. Asking the critic costs one evaluation of the model and the head; its gradient
passes through the frozen network to x_t.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trueward import records
from trueward.covariance.heads import LevelBlock, LevelEmbedding
from trueward.covariance.trunk import Trunk
from trueward.critics.critic import Critic
from trueward.denoisers import Denoiser
from trueward.loading import save_tensors
from trueward.networks import network_config, register_network
from trueward.networks.logit_head import mean_and_spread

FORMAT = 1


@register_network
class FeatureHead(nn.Module):
    """(features (batch, channels, *space), log_snr (batch,), class_labels) -> one logit per row, (batch,).

    Maps are halved and passed through a residual block that knows the noise level, `blocks` times; mean and spread over the
    positions go through a small perceptron. Vectors skip the halving. The last layer starts at zero.

    Args:
        features: channels of the features.
        spatial: number of axes after the channels: 0 for vectors, 2 for images.
        width: hidden width.
        blocks: residual blocks.
        num_classes: number of classes, or None.
        dropout: probability of dropping a feature before the perceptron.
    """

    def __init__(
        self,
        features: int,
        spatial: int = 2,
        width: int = 64,
        blocks: int = 2,
        num_classes: int | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if spatial not in (0, 1, 2, 3):
            raise ValueError(f"spatial must be 0, 1, 2 or 3, got {spatial}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        self.config: dict[str, Any] = {
            "network": "FeatureHead",
            "features": features,
            "spatial": spatial,
            "width": width,
            "blocks": blocks,
            "num_classes": num_classes,
            "dropout": dropout,
        }
        self.embedding = LevelEmbedding(width)
        self.classes = None if num_classes is None else nn.Embedding(num_classes, width)
        self.norm = nn.GroupNorm(1, features)
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}.get(spatial)
        self.reduce = nn.ModuleList()
        for k in range(blocks):
            c = features if k == 0 else width
            self.reduce.append(nn.Linear(c, width) if convolution is None else convolution(c, width, 3, 2, 1))
        self.blocks = nn.ModuleList(LevelBlock(spatial, width, width, normalise=spatial > 0) for _ in range(blocks))
        pooled = width * (2 if spatial else 1)
        self.out = nn.Sequential(
            nn.LayerNorm(pooled), nn.Dropout(dropout), nn.Linear(pooled, width), nn.SiLU(), nn.Linear(width, 1)
        )
        nn.init.zeros_(self.out[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.out[-1].bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, log_snr: Tensor, class_labels: Tensor | None = None) -> Tensor:
        level = self.embedding(log_snr)
        if self.classes is not None:
            level = level + self.classes(class_labels)
        h = self.norm(features)
        for reduce, block in zip(self.reduce, self.blocks):
            h = block(reduce(F.silu(h)), level)
        if h.ndim > 2:
            h = mean_and_spread(h)
        return self.out(h)[:, 0]


class FeatureCritic(Critic):
    """A head on the features of a denoiser, which is neither changed nor stored.

    Args:
        denoiser: the model, without guidance; it stays frozen.
        head: e.g. :class:`FeatureHead`; default: one that fits the features.
        num_classes: for a conditional critic: those of the model.
        feature_layer: which layer holds the features, see :mod:`trueward.covariance.trunk`.
        **options: of the default head: width, blocks, dropout.

    Raises:
        ValueError: if the model does not know its shape, or the layer cannot be found.
    """

    citation: ClassVar[tuple[str, ...]] = ("kim2023refining",)

    def __init__(
        self,
        denoiser: Denoiser,
        head: nn.Module | None = None,
        *,
        num_classes: int | None = None,
        feature_layer: str = "auto",
        **options: Any,
    ) -> None:
        if num_classes is not None and num_classes != denoiser.num_classes:
            raise ValueError(f"The critic is for {num_classes} classes, the model knows {denoiser.num_classes}.")
        super().__init__(denoiser.schedule, shape=denoiser.shape, num_classes=num_classes)
        self.feature_layer = feature_layer
        self.trunk = Trunk.of(denoiser, feature_layer)
        self._hidden = (denoiser,)  # a tuple, which nn.Module does not look into: the weights are the model's
        if head is None:
            head = FeatureHead(*self._measured(), num_classes=num_classes, **options)
        self.head = head.to(denoiser.device)

    @property
    def denoiser(self) -> Denoiser:
        """The model whose features are read."""
        return self._hidden[0]

    def _measured(self) -> tuple[int, int]:
        """(channels, axes after them) of the features, by asking once."""
        if self.denoiser.shape is None:
            raise ValueError("A critic on the model's features needs a model that knows the shape of its samples.")
        x = torch.zeros(1, *self.denoiser.shape, dtype=self.denoiser.dtype, device=self.denoiser.device)
        condition = (
            {} if self.num_classes is None else {"class_labels": torch.zeros(1, dtype=torch.int64, device=x.device)}
        )
        with torch.no_grad():
            features = self._features(x, torch.tensor([self.schedule.t_max], dtype=torch.float64), condition)
        return features.shape[1], features.ndim - 2

    def _features(self, x_t: Tensor, t: Tensor, condition: dict[str, Any]) -> Tensor:
        return self.trunk(self.denoiser, x_t, t, condition)[1]

    def logit(self, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        with torch.set_grad_enabled(x_t.requires_grad):  # the frozen network needs no graph unless x is to be moved
            features = self._features(x_t.to(self.denoiser.dtype), t, condition)
        dtype = next(self.head.parameters()).dtype
        log_snr = self.schedule.log_snr(t).to(x_t.device, dtype)
        return self.head(features.to(dtype), log_snr, condition.get("class_labels"))

    def save(self, folder: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Writes ``critic.json`` and ``critic.safetensors`` (the head alone) into `folder`."""
        folder = Path(folder)
        description = {
            "format": FORMAT,
            "kind": "trueward-feature-critic",
            "network": network_config(self.head),
            "schedule": self.schedule.to_config(),
            "feature_layer": self.feature_layer,
            "shape": None if self.shape is None else list(self.shape),
            "num_classes": self.num_classes,
            **(record or {}),
        }
        with records.atomic(folder / "critic.safetensors") as part:
            save_tensors(self.head.state_dict(), part)
        records.write_json(folder / "critic.json", description)
