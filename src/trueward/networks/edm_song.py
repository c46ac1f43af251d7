r"""DDPM++ and NCSN++ (Song et al. 2021) in the form of Karras et al. (2022, table 7), with the names of the published weights.

A U-Net over the resolutions res = size / 2^level, whose layers are called ``enc.{res}x{res}_...`` and ``dec.{res}x{res}_...``:

    conv, down          the first convolution; a block that halves the resolution
    block0 ... B-1      blocks on the way down; B + 1 of them on the way up, each fed the partner's output
    in0, in1, up        the middle; a block that doubles the resolution
    aux_*               NCSN++'s pyramid of pictures beside the features; the last norm and convolution

DDPM++: positional embedding, filter (1, 1), standard ways down and up. NCSN++: Fourier embedding of twice the channels, filter
(1, 3, 3, 1), residual way down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trueward.naming import check_name
from trueward.networks.edm_layers import EDMBlock, FourierLevel, PositionalLevel, ResampledConv, group_norm, one_hot
from trueward.networks.registry import register_network

_EPS, _SCALE = 1e-6, math.sqrt(0.5)


@register_network
class SongUNet(nn.Module):
    """DDPM++ / NCSN++, called as ``network(x, label, class_labels=None)``; arguments have the names of the published options.

    Args:
        img_resolution: height and width.
        in_channels, out_channels: of the picture.
        label_dim: number of classes, 0 for none. The label `label_dim`, and no label, mean "no class".
        augment_dim: inputs of the augmentation's embedding, which is zero when sampling; only its weights are kept.
        model_channels, channel_mult: channels of each level are their product.
        channel_mult_emb, channel_mult_noise: sizes of the embeddings over `model_channels`.
        num_blocks: residual blocks of each level.
        attn_resolutions: resolutions with attention.
        dropout, label_dropout: while training.
        embedding_type: positional (DDPM++) or fourier (NCSN++).
        encoder_type: standard (DDPM++), residual (NCSN++) or skip.
        decoder_type: standard or skip.
        resample_filter: (1, 1) for DDPM++, (1, 3, 3, 1) for NCSN++.

    Attributes:
        config: the arguments, JSON-able.

    Raises:
        ValueError: on unknown types, or a size that the levels do not divide.
    """

    citation: ClassVar[tuple[str, ...]] = ("song2021score", "karras2022elucidating")

    def __init__(
        self,
        img_resolution: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        check_name("embedding_type", embedding_type, ("positional", "fourier"))
        check_name("encoder_type", encoder_type, ("standard", "skip", "residual"))
        check_name("decoder_type", decoder_type, ("standard", "skip"))
        last = len(channel_mult) - 1
        if img_resolution % 2**last:
            raise ValueError(
                f"img_resolution must be a multiple of {2**last}, to be halved {last} times, got {img_resolution}."
            )
        self.config: dict[str, Any] = {
            "network": "SongUNet", "img_resolution": img_resolution, "in_channels": in_channels,
            "out_channels": out_channels, "label_dim": label_dim, "augment_dim": augment_dim,
            "model_channels": model_channels, "channel_mult": list(channel_mult), "channel_mult_emb": channel_mult_emb,
            "num_blocks": num_blocks, "attn_resolutions": list(attn_resolutions), "dropout": dropout,
            "label_dropout": label_dropout, "embedding_type": embedding_type, "channel_mult_noise": channel_mult_noise,
            "encoder_type": encoder_type, "decoder_type": decoder_type, "resample_filter": list(resample_filter),
        }  # fmt: skip
        self.label_dim, self.label_dropout = label_dim, label_dropout
        embedding, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        fourier = embedding_type == "fourier"
        self.map_noise = FourierLevel(noise) if fourier else PositionalLevel(noise, endpoint=True)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, embedding), nn.Linear(embedding, embedding)

        def block(a: int, b: int, attention: bool = False, **change: bool) -> EDMBlock:
            return EDMBlock(
                a, b, embedding, heads=int(attention), dropout=dropout, scale=_SCALE, eps=_EPS,
                resample_filter=resample_filter, project_skip=True, adaptive_scale=False, **change,
            )  # fmt: skip

        def resample(a: int, b: int, kernel: int, **change: bool) -> ResampledConv:
            return ResampledConv(a, b, kernel, resample_filter=resample_filter, **change)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        here = aux = in_channels
        skips = []
        for level, multiplier in enumerate(channel_mult):
            res = f"{img_resolution >> level}x{img_resolution >> level}"
            attention = (img_resolution >> level) in attn_resolutions
            if level == 0:
                self.enc[f"{res}_conv"] = ResampledConv(in_channels, model_channels, 3)
                here = model_channels
            else:
                self.enc[f"{res}_down"] = block(here, here, down=True)
                if encoder_type == "skip":
                    self.enc[f"{res}_aux_down"] = resample(aux, aux, 0, down=True)
                    self.enc[f"{res}_aux_skip"] = ResampledConv(aux, here, 1)
                if encoder_type == "residual":
                    self.enc[f"{res}_aux_residual"] = resample(aux, here, 3, down=True, fused=True)
                    aux = here
            skips.append(here)
            for n in range(num_blocks):
                self.enc[f"{res}_block{n}"] = block(here, model_channels * multiplier, attention)
                here = model_channels * multiplier
                skips.append(here)
        for level in reversed(range(len(channel_mult))):
            res = f"{img_resolution >> level}x{img_resolution >> level}"
            if level == last:
                self.dec[f"{res}_in0"], self.dec[f"{res}_in1"] = block(here, here, True), block(here, here)
            else:
                self.dec[f"{res}_up"] = block(here, here, up=True)
            for n in range(num_blocks + 1):
                attention = n == num_blocks and (img_resolution >> level) in attn_resolutions
                self.dec[f"{res}_block{n}"] = block(here + skips.pop(), model_channels * channel_mult[level], attention)
                here = model_channels * channel_mult[level]
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < last:
                    self.dec[f"{res}_aux_up"] = resample(out_channels, out_channels, 0, up=True)
                self.dec[f"{res}_aux_norm"] = group_norm(here, _EPS)
                self.dec[f"{res}_aux_conv"] = final = ResampledConv(here, out_channels, 3)
                nn.init.normal_(final.weight, std=1e-5)  # type: ignore[arg-type]

    def embed(self, label: Tensor, class_labels: Tensor | None) -> Tensor:
        """What every block is told of noise level and class, (batch, embedding)."""
        e = self.map_noise(label)
        e = torch.cat(e.chunk(2, dim=1)[::-1], dim=1).to(self.map_layer0.weight.dtype)  # sines first in the weights
        if self.map_label is not None:
            classes = one_hot(class_labels, self.label_dim, len(label), e)
            if self.training and self.label_dropout:
                classes = classes * (torch.rand(len(e), 1, device=e.device) >= self.label_dropout)
            e = e + self.map_label(classes * math.sqrt(self.label_dim))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(e))))

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x: (batch, channels, size, size); label: (batch,); class_labels: (batch,) int64. Returns the shape of x."""
        e = self.embed(label, class_labels)
        skips: list[Tensor] = []
        aux: Any = x
        for name, layer in self.enc.items():
            if "aux_down" in name:
                aux = layer(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + layer(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + layer(aux)) * _SCALE
            else:
                x = layer(x, e) if isinstance(layer, EDMBlock) else layer(x)
                skips.append(x)
        aux, normed = None, x
        for name, layer in self.dec.items():
            if "aux_up" in name:
                aux = layer(aux)
            elif "aux_norm" in name:
                normed = layer(x)
            elif "aux_conv" in name:
                picture = layer(F.silu(normed))
                aux = picture if aux is None else picture + aux
            else:
                x = layer(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, e)
        return aux
