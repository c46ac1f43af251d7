r"""The descending half of a U-Net: a picture and a time input to a small map of features, for networks that judge.

The blocks are those of :class:`~trueward.networks.UNet`; there is no way up and no skip, so it costs about a third of a whole
U-Net of the same width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trueward.networks.embedding import LabelEmbedding
from trueward.networks.registry import register_network
from trueward.networks.unet import ResidualBlock, SelfAttention


@register_network
class HalfUNet(nn.Module):
    """A trunk for :class:`~trueward.networks.LogitHead`, called by its ``forward_features(x, label, class_labels=None)``.

    Args:
        channels: channels of the picture.
        size: height, or (height, width).
        width: channels of the first level.
        multipliers: channels of each level over `width`; each level after the first halves the resolution.
        blocks: residual blocks of each level.
        attention: heights of the maps that get self-attention.
        num_classes: number of classes or None; label `num_classes` (and no label) means "no class".
        dropout: probability of dropping a hidden activation.
        label_scale: size of the range of the time input, see :class:`~trueward.networks.LabelEmbedding`.
        head_width: channels of an attention head.
        stride: 2 halves the resolution in the first layer, for pictures whose finest detail decides little.

    Attributes:
        config: the arguments, JSON-able.
        features: channels of what :meth:`forward_features` returns.

    Raises:
        ValueError: on arguments out of range.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int | Sequence[int] = 32,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        attention: Sequence[int] = (),
        num_classes: int | None = None,
        dropout: float = 0.0,
        label_scale: float = 1.0,
        head_width: int = 64,
        stride: int = 1,
    ) -> None:
        super().__init__()
        height = size if isinstance(size, int) else size[0]
        for name, value in {"channels": channels, "size": height, "width": width, "blocks": blocks}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"HalfUNet needs {name} to be a whole number >= 1, got {value!r}.")
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride!r}.")
        if not multipliers or min(multipliers) < 1:
            raise ValueError(f"multipliers must be one or more whole numbers >= 1, got {list(multipliers)}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        self.config: dict[str, Any] = {
            "network": "HalfUNet",
            "channels": channels,
            "size": size if isinstance(size, int) else list(size),
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "num_classes": num_classes,
            "dropout": dropout,
            "label_scale": label_scale,
            "head_width": head_width,
            "stride": stride,
        }
        self.channels, self.num_classes = channels, num_classes
        self.embedding = LabelEmbedding(4 * width, num_classes, label_scale)
        c = width * multipliers[0]
        self.stem = nn.Conv2d(channels, c, 3 if stride == 1 else 4, stride=stride, padding=1)
        height = height if stride == 1 else max(1, height // 2)
        self.halve, self.levels = nn.ModuleList(), nn.ModuleList()
        self.splits: list[int] = []  # channels of each block's modulation
        self.attention = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.halve.append(nn.Conv2d(c, width * multiplier, 3, stride=2, padding=1))
                c, height = width * multiplier, -(-height // 2)
            self.levels.append(nn.ModuleList(ResidualBlock(c, c, dropout) for _ in range(blocks)))
            self.splits += [2 * c] * blocks
            self.attention.append(SelfAttention(c, min(head_width, c)) if height in attention else nn.Identity())
        self.last = ResidualBlock(c, c, dropout)
        self.features = c
        self.splits.append(2 * c)
        self.modulation = nn.Linear(4 * width, sum(self.splits))

    def forward_features(
        self,
        x: Float[Tensor, "batch channels height width"],
        label: Float[Tensor, " batch"],
        class_labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch features h w"]:
        """The last feature map; `label` (batch,) is the time input.

        Raises:
            ValueError: if `x` is not (batch, channels, height, width).
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"HalfUNet takes x of shape (batch, {self.channels}, height, width), got {tuple(x.shape)}."
            )
        modulations = iter(self.modulation(self.embedding(label, class_labels)).split(self.splits, dim=1))
        h = self.stem(x)
        for level, blocks in enumerate(self.levels):
            if level > 0:
                h = self.halve[level - 1](F.silu(h))
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, next(modulations))
            h = self.attention[level](h)
        return self.last(h, next(modulations))
