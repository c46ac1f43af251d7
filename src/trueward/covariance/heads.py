r"""Heads: from the features of a frozen model to one number per dimension (or a matrix), linear at the end and unconstrained.

    simple     out(silu(norm features))                        the published default
    complex    one residual block that knows the noise level, then simple

`out` is a 3x3 convolution for images (3 for sequences), a linear layer for vectors (also for images whose network holds them as
one vector). Its weights start at zero and its bias at
`initial`, so an untrained head answers the same number everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trueward.naming import check_name
from trueward.networks.registry import register_network

MODES = ("simple", "complex")


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _layer(spatial: int, in_channels: int, out_channels: int) -> nn.Module:
    if spatial == 0:
        return nn.Linear(in_channels, out_channels)
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[spatial]
    return kind(in_channels, out_channels, 3, padding=1)  # type: ignore[return-value]


def _start_at(layer: nn.Module, value: float) -> nn.Module:
    nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    nn.init.constant_(layer.bias, value)  # type: ignore[arg-type]
    return layer


class LevelEmbedding(nn.Module):
    """The log-SNR (batch,) as features (batch, width): cosines and sines of 0.05 ... 5 times it, and two layers."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(math.log10(0.05), math.log10(5.0), 16), persistent=False)
        self.layers = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, log_snr: Tensor) -> Tensor:
        phase = log_snr.unsqueeze(1) * self.frequencies
        return self.layers(torch.cat([phase.cos(), phase.sin()], dim=1))


class LevelBlock(nn.Module):
    """x + layer(silu(modulated(norm(layer(silu(norm x)))))), the modulation (scale, shift) from the noise level."""

    def __init__(self, spatial: int, channels: int, width: int, normalise: bool) -> None:
        super().__init__()
        self.norm_1 = _norm(channels) if normalise else nn.Identity()
        self.layer_1 = _layer(spatial, channels, channels)
        self.modulation = nn.Linear(width, 2 * channels)
        self.norm_2 = _norm(channels) if normalise else nn.Identity()
        self.layer_2 = _start_at(_layer(spatial, channels, channels), 0.0)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.modulation(level).view(x.shape[0], -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        h = self.norm_2(self.layer_1(F.silu(self.norm_1(x))))
        return x + self.layer_2(F.silu(h * (1.0 + scale) + shift))


@register_network
class CovarianceHead(nn.Module):
    """(features, log_snr) -> (batch, channels, *space), called as ``head(features, log_snr)``.

    Args:
        features: channels of the features.
        channels: channels of x.
        spatial: number of axes after the channels: 0 for vectors, 2 for images.
        mode: simple or complex.
        initial: what an untrained head answers.
        blocks, width: of the complex mode; default one block of the features' own width for images, and three of width 128,
            without normalisation and with a linear layer in front, for vectors (which may be raw inputs).
        shape: of the answer without its batch axis, where features that are vectors speak of samples of another shape;
            `channels` is then its number of entries.
    """

    def __init__(
        self,
        features: int,
        channels: int,
        spatial: int = 2,
        mode: str = "simple",
        initial: float = 0.0,
        blocks: int | None = None,
        width: int | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_name("head mode", mode, MODES)
        if spatial not in (0, 1, 2, 3):
            raise ValueError(f"spatial must be 0, 1, 2 or 3, got {spatial}.")
        if shape is not None and (spatial or math.prod(shape) != channels):
            raise ValueError(f"shape={tuple(shape)} needs spatial=0 and channels={math.prod(shape)}, got {channels}.")
        self.config: dict[str, Any] = {"network": "CovarianceHead", "features": features, "channels": channels}
        self.config |= {"spatial": spatial, "mode": mode}
        self.config |= {"initial": initial, "blocks": blocks, "width": width}
        if shape is not None:
            self.config["shape"] = list(shape)
        self.shape = None if shape is None else tuple(shape)
        self.stem: nn.Module = nn.Identity()
        self.blocks = nn.ModuleList()
        if mode == "complex":
            count = blocks if blocks is not None else 1 if spatial else 3
            inner = width if width is not None else features if spatial else 128
            self.embedding = LevelEmbedding(inner)
            if inner != features or not spatial:
                self.stem = _layer(spatial, features, inner)
            self.blocks.extend(LevelBlock(spatial, inner, inner, normalise=spatial > 0) for _ in range(count))
            features = inner
        raw = mode == "complex" and not spatial
        self.norm = nn.Identity() if raw else _norm(features) if spatial else nn.LayerNorm(features)
        self.out = _start_at(_layer(spatial, features, channels), initial)

    def forward(self, features: Tensor, log_snr: Tensor) -> Tensor:
        h = self.stem(features)
        if len(self.blocks):
            level = self.embedding(log_snr)
            for block in self.blocks:
                h = block(h, level)
        answer = self.out(F.silu(self.norm(h)))
        return answer if self.shape is None else answer.view(-1, *self.shape)


@register_network
class MatrixHead(nn.Module):
    """(features, log_snr) -> symmetric matrices (batch, d, d), for data of few dimensions d.

    The features, flattened, pass through a residual network with the noise level; its last layer is the lower triangle.
    """

    def __init__(self, features: int, dimensions: int, width: int = 256, blocks: int = 3) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"network": "MatrixHead", "features": features, "dimensions": dimensions}
        self.config |= {"width": width, "blocks": blocks}
        self.dimensions = dimensions
        triangle = dimensions * (dimensions + 1) // 2
        self.net = CovarianceHead(features, triangle, 0, "complex", blocks=blocks, width=width)
        rows, columns = torch.tril_indices(dimensions, dimensions)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, features: Tensor, log_snr: Tensor) -> Tensor:
        triangle = self.net(features.flatten(1), log_snr)
        matrix = triangle.new_zeros(len(triangle), self.dimensions, self.dimensions)
        matrix[:, self.rows, self.columns] = triangle
        matrix[:, self.columns, self.rows] = triangle
        return matrix
