r"""ADM (Dhariwal and Nichol 2021) in the form of Karras et al. (2022, table 7), with the names of the published weights.

The same U-Net and names as :mod:`trueward.networks.edm_song`, with attention heads of 64 channels on the way up too, scale and
shift from the embedding, sums that are not rescaled, a skip that is resampled without a convolution, and ``out_norm``,
``out_conv`` at the end. The class is added to the embedding after its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trueward.networks.edm_layers import EDMBlock, PositionalLevel, ResampledConv, group_norm, one_hot
from trueward.networks.registry import register_network

_HEAD = 64


@register_network
class DhariwalUNet(nn.Module):
    """ADM, called as ``network(x, label, class_labels=None)``; arguments have the names of the published options.

    Args:
        img_resolution, in_channels, out_channels, label_dim, augment_dim, model_channels, channel_mult, channel_mult_emb,
        num_blocks, attn_resolutions, dropout, label_dropout: see :class:`~trueward.networks.SongUNet`.

    Attributes:
        config: the arguments, JSON-able.

    Raises:
        ValueError: on a size that the levels do not divide.
    """

    citation: ClassVar[tuple[str, ...]] = ("dhariwal2021diffusion", "karras2022elucidating")

    def __init__(
        self,
        img_resolution: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        last = len(channel_mult) - 1
        if img_resolution % 2**last:
            raise ValueError(
                f"img_resolution must be a multiple of {2**last}, to be halved {last} times, got {img_resolution}."
            )
        self.config: dict[str, Any] = {
            "network": "DhariwalUNet", "img_resolution": img_resolution, "in_channels": in_channels,
            "out_channels": out_channels, "label_dim": label_dim, "augment_dim": augment_dim,
            "model_channels": model_channels, "channel_mult": list(channel_mult), "channel_mult_emb": channel_mult_emb,
            "num_blocks": num_blocks, "attn_resolutions": list(attn_resolutions), "dropout": dropout,
            "label_dropout": label_dropout,
        }  # fmt: skip
        self.label_dim, self.label_dropout = label_dim, label_dropout
        embedding = model_channels * channel_mult_emb
        self.map_noise = PositionalLevel(model_channels)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(model_channels, embedding), nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(label_dim, embedding, bias=False) if label_dim else None

        def block(a: int, b: int, attention: bool = False, **change: Any) -> EDMBlock:
            heads = max(1, b // _HEAD) if attention else 0
            made = EDMBlock(a, b, embedding, heads=heads, dropout=dropout, **change)
            nn.init.zeros_(made.conv1.weight)  # type: ignore[arg-type]  # every branch starts at zero
            if heads:
                nn.init.zeros_(made.proj.weight)  # type: ignore[arg-type]
            return made

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        here, skips = model_channels, []
        for level, multiplier in enumerate(channel_mult):
            res, size = f"{img_resolution >> level}x{img_resolution >> level}", img_resolution >> level
            if level == 0:
                here = model_channels * multiplier
                self.enc[f"{res}_conv"] = ResampledConv(in_channels, here, 3)
            else:
                self.enc[f"{res}_down"] = block(here, here, down=True)
            skips.append(here)
            for n in range(num_blocks):
                self.enc[f"{res}_block{n}"] = block(here, model_channels * multiplier, size in attn_resolutions)
                here = model_channels * multiplier
                skips.append(here)
        for level in reversed(range(len(channel_mult))):
            res, size = f"{img_resolution >> level}x{img_resolution >> level}", img_resolution >> level
            if level == last:
                self.dec[f"{res}_in0"], self.dec[f"{res}_in1"] = block(here, here, True), block(here, here)
            else:
                self.dec[f"{res}_up"] = block(here, here, up=True)
            for n in range(num_blocks + 1):
                wide = model_channels * channel_mult[level]
                self.dec[f"{res}_block{n}"] = block(here + skips.pop(), wide, size in attn_resolutions)
                here = wide
        self.out_norm = group_norm(here, 1e-5)
        self.out_conv = ResampledConv(here, out_channels, 3)
        nn.init.zeros_(self.out_conv.weight)  # type: ignore[arg-type]

    def embed(self, label: Tensor, class_labels: Tensor | None) -> Tensor:
        """What every block is told of noise level and class, (batch, embedding)."""
        e = self.map_noise(label).to(self.map_layer0.weight.dtype)
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if self.map_label is not None:
            classes = one_hot(class_labels, self.label_dim, len(label), e)
            if self.training and self.label_dropout:
                classes = classes * (torch.rand(len(e), 1, device=e.device) >= self.label_dropout)
            e = e + self.map_label(classes)
        return F.silu(e)

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x: (batch, channels, size, size); label: (batch,); class_labels: (batch,) int64. Returns the shape of x."""
        e = self.embed(label, class_labels)
        skips = []
        for layer in self.enc.values():
            x = layer(x, e) if isinstance(layer, EDMBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, e)
        return self.out_conv(F.silu(self.out_norm(x)))
