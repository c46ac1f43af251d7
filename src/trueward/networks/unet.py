r"""A small modern U-Net for images: x and a time input in, a tensor of the shape of x out.

Residual blocks h -> skip(h) + conv(silu(norm(conv(silu(norm h))) (1 + scale) + shift)), modulated by time and class
(Dhariwal and Nichol 2021), attention where the map is small, one concatenated skip from every block of the way down to its
partner on the way up. The last convolution of every branch starts at zero, so the network starts as the identity plus zero.

Where the time goes on a CPU decides the form: high resolutions are bound by memory traffic, low ones by matrix products,
so blocks are cheap at the top (`blocks` may differ by level); normalisation, modulation and SiLU are one operation; one
linear layer makes the modulation of all blocks; channels are reduced before a map grows, not after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trueward.networks.embedding import LabelEmbedding
from trueward.networks.normalization import NormSiLU
from trueward.networks.registry import register_network


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the second modulated; `modulation` below is (batch, 2 out_channels)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm_1 = NormSiLU(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_2 = NormSiLU(out_channels)
        self.dropout = dropout
        self.conv_2 = _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.chunk(2, dim=1)
        h = self.conv_1(self.norm_1(x))
        h = F.dropout(self.norm_2(h, scale, shift), self.dropout, self.training)
        return (x if self.skip is None else self.skip(x)) + self.conv_2(h)


class SelfAttention(nn.Module):
    """x + projection(attention(norm x)) over all positions, heads of `head_width` channels."""

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head_width)
        if channels % self.heads:
            raise ValueError(f"head_width={head_width} does not divide {channels} channels.")
        self.norm = nn.GroupNorm(NormSiLU(channels).groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if x.device.type == "cpu" and torch.is_grad_enabled() and height * width <= 256:
            # the backward pass of the fused CPU kernel is several times slower than this on small maps
            h = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1).to(v.dtype) @ v
        else:
            h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(1, 2).reshape(batch, height, width, channels)
        return x + self.projection(h.permute(0, 3, 1, 2))


class Output(nn.Module):
    """Features to the answer: convolution(silu(norm features)), zero at the start; each position answers for its patch.

    A second head on the same features (a learned covariance, a critic) is another one of these.
    """

    def __init__(self, features: int, channels: int, patch: int = 1) -> None:
        super().__init__()
        self.norm = NormSiLU(features)
        self.conv = _zero(nn.Conv2d(features, channels * patch**2, 3, padding=1))
        self.patch = patch

    def forward(self, features: Tensor) -> Tensor:
        answer = self.conv(self.norm(features))
        return answer if self.patch == 1 else F.pixel_shuffle(answer, self.patch)


@register_network
class UNet(nn.Module):
    """U-Net called as ``network(x, label, class_labels=None)``.

    Any height and width can be given, odd ones too (28 -> 14 -> 7 -> 4); `size` only says at which levels the resolutions in
    `attention` are met.

    Args:
        channels: channels of x.
        size: height and width of the images it is meant for, a number or a pair.
        width: channels of the first level.
        multipliers: channels of each level in units of `width`; the resolution halves from level to level.
        blocks: residual blocks of each level, one number or one per level (the way up has as many).
        attention: resolutions (heights) at which every block is followed by self-attention; the middle has it if its
            resolution is in here.
        num_classes: number of classes or None. Label `num_classes` (and no label) means "no class".
        dropout: probability of dropping an activation inside the blocks.
        label_scale: size of the range of the time input, see :class:`LabelEmbedding`.
        head_width: channels of one attention head.
        patch: side of the squares of pixels that become one position of the first level, its resolution being size/patch
            (Hoogeboom et al. 2023): 2 makes a network of the same depth about twice as fast.

    Attributes:
        config: the arguments, JSON-able; :func:`trueward.networks.network` rebuilds the network from it.
        features: channels of the last feature map, which :meth:`forward_features` returns and `out` turns into the answer.

    Raises:
        ValueError: on arguments out of range.
    """

    citation: ClassVar[tuple[str, ...]] = ("dhariwal2021diffusion", "ho2020denoising", "hoogeboom2023simple")

    def __init__(
        self,
        channels: int = 1,
        size: int | Sequence[int] = 28,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (7,),
        num_classes: int | None = None,
        dropout: float = 0.0,
        label_scale: float = 1.0,
        head_width: int = 64,
        patch: int = 1,
    ) -> None:
        super().__init__()
        size = size if isinstance(size, int) else list(size)
        height, breadth = (size, size) if isinstance(size, int) else size
        multipliers, attention = [int(m) for m in multipliers], [int(a) for a in attention]
        depth = len(multipliers)
        counts = [blocks] * depth if isinstance(blocks, int) else [int(b) for b in blocks]
        for name, value in {
            "channels": channels,
            "width": width,
            "height": height,
            "breadth": breadth,
            "patch": patch,
        }.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"UNet needs {name} to be a whole number >= 1, got {value!r}.")
        if depth < 1 or min(multipliers) < 1:
            raise ValueError(f"multipliers must be one or more whole numbers >= 1, got {multipliers}.")
        if len(counts) != depth or min(counts) < 1:
            raise ValueError(f"blocks must be one number >= 1 or one for each of the {depth} levels, got {blocks!r}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        self.config: dict[str, Any] = {
            "network": "UNet",
            "channels": channels,
            "size": size,
            "width": width,
            "multipliers": multipliers,
            "blocks": blocks if isinstance(blocks, int) else counts,
            "attention": attention,
            "num_classes": num_classes,
            "dropout": dropout,
            "label_scale": label_scale,
            "head_width": head_width,
            "patch": patch,
        }
        self.channels, self.num_classes, self.features = channels, num_classes, width * multipliers[0]
        self.embedding = LabelEmbedding(4 * width, num_classes, label_scale)

        def attend(at: int, c: int) -> nn.Module:
            return SelfAttention(c, head_width) if at in attention else nn.Identity()

        c = self.features
        self.patch, height = patch, -(-height // patch)
        self.stem = nn.Conv2d(channels * patch**2, c, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.down_attention, self.up_attention = nn.ModuleList(), nn.ModuleList()
        self.halve = nn.ModuleList()
        skips: list[int] = []
        heights: list[int] = []
        for level, (multiplier, count) in enumerate(zip(multipliers, counts, strict=True)):
            if level > 0:
                self.halve.append(nn.Conv2d(c, width * multiplier, 3, stride=2, padding=1))
                c, height = width * multiplier, -(-height // 2)
            heights.append(height)
            for _ in range(count):
                self.down.append(ResidualBlock(c, width * multiplier, dropout))
                c = width * multiplier
                self.down_attention.append(attend(height, c))
                skips.append(c)
        self.middle_1, self.middle_2 = ResidualBlock(c, c, dropout), ResidualBlock(c, c, dropout)
        self.middle_attention = attend(height, c)
        self.widen = nn.ModuleList()  # deepest first: fewer channels before the map grows, where they are cheap
        for level in reversed(range(depth)):
            if level < depth - 1:
                self.widen.append(nn.Conv2d(c, width * multipliers[level], 1))
                c = width * multipliers[level]
            for _ in range(counts[level]):
                self.up.append(ResidualBlock(c + skips.pop(), width * multipliers[level], dropout))
                c = width * multipliers[level]
                self.up_attention.append(attend(heights[level], c))
        self.counts = counts
        self.blocks_in_order = [*self.down, self.middle_1, self.middle_2, *self.up]
        self.splits = [2 * block.conv_1.out_channels for block in self.blocks_in_order]  # type: ignore[union-attr]
        self.modulation = nn.Linear(4 * width, sum(self.splits))
        self.out = Output(c, channels, patch)

    def forward_features(
        self,
        x: Float[Tensor, "batch channels height width"],
        label: Float[Tensor, " batch"],
        class_labels: Int[Tensor, " batch"] | None = None,
    ) -> Tensor:
        """The last feature map (batch, features, height/patch, width/patch), before the output block.

        Raises:
            ValueError: if `x` is not (batch, channels, height, width).
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"UNet takes x of shape (batch, {self.channels}, height, width), got {tuple(x.shape)}.")
        modulations = iter(self.modulation(self.embedding(label, class_labels)).split(self.splits, dim=1))
        h = self.stem(self._patches(x))
        skips: list[Tensor] = []
        blocks = iter(zip(self.down, self.down_attention, strict=True))
        for level, count in enumerate(self.counts):
            if level > 0:
                h = self.halve[level - 1](h)
            for _ in range(count):
                block, attention = next(blocks)
                h = attention(block(h, next(modulations)))
                skips.append(h)
        h = self.middle_1(h, next(modulations))
        h = self.middle_2(self.middle_attention(h), next(modulations))
        blocks = iter(zip(self.up, self.up_attention, strict=True))
        for index, count in enumerate(reversed(self.counts)):
            if index > 0:
                h = F.interpolate(self.widen[index - 1](h), size=skips[-1].shape[-2:], mode="nearest")
            for _ in range(count):
                block, attention = next(blocks)
                h = attention(block(torch.cat([h, skips.pop()], dim=1), next(modulations)))
        return h

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        label: Float[Tensor, " batch"],
        class_labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The answer, in the shape of `x`.

        Args:
            x: (batch, channels, height, width).
            label: (batch,), the time input.
            class_labels: (batch,) int64 in 0 ... num_classes, or None for "no class".
        """
        return self.out(self.forward_features(x, label, class_labels))[..., : x.shape[-2], : x.shape[-1]]

    def _patches(self, x: Tensor) -> Tensor:
        """Each square of pixels as the channels of one position; the picture is filled up with zeros to whole squares."""
        if self.patch == 1:
            return x
        down, right = (-n % self.patch for n in x.shape[-2:])
        x = F.pixel_unshuffle(F.pad(x, (0, right, 0, down)), self.patch)
        last = self.stem.weight.is_contiguous(memory_format=torch.channels_last)
        return x.contiguous(memory_format=torch.channels_last) if last else x
