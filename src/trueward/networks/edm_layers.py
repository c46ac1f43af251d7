r"""The layers of the networks of Karras et al. (2022, appendix F), with the names their published weights have.

A convolution may change the resolution by a separable filter f, normalised to sum to one: upsampling puts zeros between the
pixels and filters with 4 f, downsampling filters and keeps every second pixel; then the kernel follows. A residual block is

    h = conv0(silu(norm0 x)),   h = silu(norm1(h + a))  or  silu((1 + s) norm1 h + a),   y = c (skip x + conv1(dropout h))

with (s, a) an affine function of the embedding and c = 1 or sqrt(1/2); attention adds, with the same c,
y <- c (y + proj(softmax(q^T k / sqrt d) v)). The channels of `qkv` are ordered head, channel, (q, k, v).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResampledConv(nn.Module):
    """A convolution that may double or halve the resolution first; ``kernel=0`` only resamples.

    Args:
        in_channels, out_channels, kernel: of the convolution.
        up, down: change of the resolution.
        resample_filter: the filter along one axis, e.g. (1, 1) or (1, 3, 3, 1).
        fused: filter after the kernel when going down, which is cheaper for few channels; a different function at the edges.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.fused, self.kernel = up, down, fused, kernel
        self.weight = self.bias = None
        if kernel:
            layer = nn.Conv2d(in_channels, out_channels, kernel)
            self.weight, self.bias = layer.weight, layer.bias
        line = torch.as_tensor(resample_filter, dtype=torch.float32)
        square = torch.outer(line, line) / line.sum() ** 2
        self.register_buffer("resample_filter", square[None, None] if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        pad = self.kernel // 2
        if self.resample_filter is not None:
            f = self.resample_filter.to(x.dtype)
            reach = (f.shape[-1] - 1) // 2
            if self.down and self.fused and self.weight is not None:
                x = F.conv2d(x, self.weight.to(x.dtype), padding=pad + reach)
                x = F.conv2d(x, f.expand(self.out_channels, 1, -1, -1), groups=self.out_channels, stride=2)
                return x if self.bias is None else x + self.bias.to(x.dtype)[:, None, None]
            f = f.expand(self.in_channels, 1, -1, -1)
            if self.up:
                x = F.conv_transpose2d(x, 4.0 * f, groups=self.in_channels, stride=2, padding=reach)
            else:
                x = F.conv2d(x, f, groups=self.in_channels, stride=2, padding=reach)
        if self.weight is None:
            return x
        return F.conv2d(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype), padding=pad)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Groups of at least four channels, at most 32 of them."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class EDMBlock(nn.Module):
    """The residual block of both architectures.

    Args:
        in_channels, out_channels, embedding: sizes; `embedding` is that of the time and class.
        up, down: change of the resolution.
        heads: of the attention; 0 for none.
        dropout: before the second convolution, while training.
        scale: c, of both sums.
        eps: of the normalisations.
        resample_filter: see :class:`ResampledConv`.
        project_skip: a 1x1 convolution on the skip whenever the resolution changes.
        adaptive_scale: the embedding gives scale and shift, not a shift alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
        dropout: float = 0.0,
        scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        project_skip: bool = False,
        adaptive_scale: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.dropout, self.scale, self.adaptive_scale = dropout, scale, adaptive_scale
        change: dict[str, object] = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = group_norm(in_channels, eps)
        self.conv0 = ResampledConv(in_channels, out_channels, 3, **change)  # type: ignore[arg-type]
        self.affine = nn.Linear(embedding, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = group_norm(out_channels, eps)
        self.conv1 = ResampledConv(out_channels, out_channels, 3)
        self.skip = None
        if up or down or in_channels != out_channels:
            kernel = 1 if project_skip or in_channels != out_channels else 0
            self.skip = ResampledConv(in_channels, out_channels, kernel, **change)  # type: ignore[arg-type]
        if heads:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = ResampledConv(out_channels, 3 * out_channels, 1)
            self.proj = ResampledConv(out_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        moved = self.affine(embedding)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            s, a = moved.chunk(2, dim=1)
            h = F.silu(torch.addcmul(a, self.norm1(h), 1.0 + s))
        else:
            h = F.silu(self.norm1(h + moved))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        y = ((x if self.skip is None else self.skip(x)) + h) * self.scale
        return (y + self.attended(y)) * self.scale if self.heads else y

    def attended(self, y: Tensor) -> Tensor:
        """proj(attention(norm2 y)), the shape of `y`."""
        batch, channels, height, width = y.shape
        every = self.qkv(self.norm2(y)).view(batch, self.heads, channels // self.heads, 3, height * width)
        q, k, v = (part.transpose(2, 3) for part in every.unbind(3))  # (batch, heads, places, channels of a head)
        found = F.scaled_dot_product_attention(q, k, v)
        return self.proj(found.transpose(2, 3).reshape(batch, channels, height, width))


class PositionalLevel(nn.Module):
    """The noise label l as [cos(w_k l), sin(w_k l)], w_k = 10000^(-k/K), k = 0 ... K-1 (or K-1 in the exponent's place of K).

    Args:
        channels: 2 K.
        endpoint: let the last frequency be 1/10000 exactly, K-1 instead of K below the line.
    """

    def __init__(self, channels: int, endpoint: bool = False) -> None:
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, label: Tensor) -> Tensor:
        half = self.channels // 2
        k = torch.arange(half, dtype=torch.float32, device=label.device)
        angle = label.float()[:, None] * 10000.0 ** (-k / (half - self.endpoint))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierLevel(nn.Module):
    """The noise label l as [cos(2 pi w_k l), sin(2 pi w_k l)], w_k drawn once with standard deviation 16 and stored."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, label: Tensor) -> Tensor:
        angle = label.float()[:, None] * (2.0 * math.pi * self.freqs.float())
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def one_hot(class_labels: Tensor | None, classes: int, rows: int, like: Tensor) -> Tensor:
    """(rows, classes): the label `classes`, and no labels at all, are a row of zeros."""
    if class_labels is None:
        return like.new_zeros(rows, classes)
    return F.one_hot(class_labels.to(torch.int64), classes + 1)[:, :classes].to(like.dtype)
