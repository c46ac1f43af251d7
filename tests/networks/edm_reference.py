"""EDM's networks once more, from the formulas alone: a function of the state dict and the options, slow and plain."""

from __future__ import annotations

import math

import numpy as np
import torch

F64 = torch.float64


def conv(x, weight, bias=None):
    """Every output pixel is a sum over the window around it; zeros outside."""
    k = weight.shape[-1]
    pad = k // 2
    padded = torch.zeros(*x.shape[:2], x.shape[2] + 2 * pad, x.shape[3] + 2 * pad, dtype=x.dtype)
    padded[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]] = x
    out = torch.zeros(x.shape[0], weight.shape[0], *x.shape[2:], dtype=x.dtype)
    for i in range(k):
        for j in range(k):
            window = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            out = out + torch.einsum("bchw,oc->bohw", window, weight[:, :, i, j])
    return out if bias is None else out + bias[:, None, None]


def along(x, matrix):
    """The same linear map along height and width."""
    return torch.einsum("ih,jw,bchw->bcij", matrix, matrix, x)


def down_matrix(size, taps):
    """y_i = sum_k f_k x_{2 i + k - (K-1)//2}, f summing to one."""
    f = np.array(taps, dtype=float) / sum(taps)
    matrix = torch.zeros(size // 2, size, dtype=F64)
    for i in range(size // 2):
        for k, weight in enumerate(f):
            j = 2 * i + k - (len(f) - 1) // 2
            if 0 <= j < size:
                matrix[i, j] += weight
    return matrix


def up_matrix(size, taps):
    """Twice the transpose: pixels spread by 2 f."""
    return 2.0 * down_matrix(2 * size, taps).T


def resample(x, taps, up, down):
    if up:
        return along(x, up_matrix(x.shape[2], taps))
    return along(x, down_matrix(x.shape[2], taps)) if down else x


def norm(x, weight, bias, eps):
    groups = min(32, x.shape[1] // 4)
    parts = x.reshape(x.shape[0], groups, -1)
    parts = (parts - parts.mean(2, keepdim=True)) / torch.sqrt(parts.var(2, correction=0, keepdim=True) + eps)
    return parts.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def silu(x):
    return x / (1.0 + torch.exp(-x))


class Weights:
    """A part of a state dict by its prefix."""

    def __init__(self, state, prefix=""):
        self.state, self.prefix = state, prefix

    def __getitem__(self, name):
        return self.state[self.prefix + name].to(F64)

    def __contains__(self, name):
        return self.prefix + name in self.state

    def part(self, name):
        return Weights(self.state, f"{self.prefix}{name}.")

    def linear(self, name, x):
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if f"{name}.bias" in self else y

    def conv(self, name, x):
        return conv(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, name, x, eps):
        return norm(x, self[f"{name}.weight"], self[f"{name}.bias"], eps)


def attention(w, x, heads, eps):
    """Loops over images, heads and places; channel (head, c, part) of qkv is number (head * d + c) * 3 + part."""
    batch, channels, height, width = x.shape
    d = channels // heads
    qkv = w.conv("qkv", w.norm("norm2", x, eps)).reshape(batch, 3 * channels, -1)
    out = torch.zeros(batch, channels, height * width, dtype=F64)
    for b in range(batch):
        for h in range(heads):
            q, k, v = (qkv[b, [(h * d + c) * 3 + part for c in range(d)]] for part in range(3))
            for place in range(height * width):
                logits = (q[:, place, None] * k).sum(0) / math.sqrt(d)
                weights = torch.exp(logits - logits.max())
                out[b, h * d : (h + 1) * d, place] = (v * weights / weights.sum()).sum(1)
    return w.conv("proj", out.reshape(x.shape))


def block(w, x, e, *, taps, up=False, down=False, scale, eps, heads, adaptive):
    h = w.conv("conv0", resample(silu(w.norm("norm0", x, eps)), taps, up, down))
    a = w.linear("affine", e)[:, :, None, None]
    if adaptive:
        s, a = a[:, : a.shape[1] // 2], a[:, a.shape[1] // 2 :]
        h = silu(w.norm("norm1", h, eps) * (1.0 + s) + a)
    else:
        h = silu(w.norm("norm1", h + a, eps))
    h = w.conv("conv1", h)
    skip = resample(x, taps, up, down)
    if "skip.weight" in w:
        skip = w.conv("skip", skip)
    y = (skip + h) * scale
    return (y + attention(w, y, heads(y.shape[1]), eps)) * scale if "qkv.weight" in w else y


def positional(label, channels, endpoint):
    half = channels // 2
    w = [10000.0 ** (-k / (half - 1 if endpoint else half)) for k in range(half)]
    angle = label[:, None].to(F64) * torch.tensor(w, dtype=F64)
    return torch.cos(angle), torch.sin(angle)


def walk(w, o, x, e, options, has_aux):
    """The U-Net of both, level by level; `has_aux` says whether the last layers are called aux_*."""
    size, levels, blocks = o["img_resolution"], len(o["channel_mult"]), o["num_blocks"]
    encoder, decoder = o.get("encoder_type", "standard"), o.get("decoder_type", "standard")
    taps = options["taps"]
    own = {"taps": taps, **{k: options[k] for k in ("scale", "eps", "heads", "adaptive")}}
    skips, aux = [], x
    for level in range(levels):
        at = f"enc.{size >> level}x{size >> level}_"
        if level == 0:
            x = w.conv(f"{at}conv", x)
            skips.append(x)
        else:
            x = block(w.part(f"{at}down"), x, e, down=True, **own)
            if encoder == "residual":  # the kernel first, then the filter
                wide = w[f"{at}aux_residual.weight"]
                grown = torch.nn.functional.pad(aux, [len(taps)] * 4)
                moved = along(conv(grown, wide), down_matrix(grown.shape[2], taps))
                cut = len(taps) // 2
                aux = moved[:, :, cut : cut + x.shape[2], cut : cut + x.shape[3]]
                x = aux = (x + aux + w[f"{at}aux_residual.bias"][:, None, None]) * math.sqrt(0.5)
            if encoder == "skip":
                aux = resample(aux, taps, False, True)
                x = x + w.conv(f"{at}aux_skip", aux)
            skips.append(x)
        for n in range(blocks):
            x = block(w.part(f"{at}block{n}"), x, e, **own)
            skips.append(x)
    picture = None
    for level in reversed(range(levels)):
        at = f"dec.{size >> level}x{size >> level}_"
        if level == levels - 1:
            x = block(w.part(f"{at}in1"), block(w.part(f"{at}in0"), x, e, **own), e, **own)
        else:
            x = block(w.part(f"{at}up"), x, e, up=True, **own)
        for n in range(blocks + 1):
            x = block(w.part(f"{at}block{n}"), torch.cat([x, skips.pop()], 1), e, **own)
        if has_aux and (decoder == "skip" or level == 0):
            here = w.conv(f"{at}aux_conv", silu(w.norm(f"{at}aux_norm", x, 1e-6)))
            picture = here if picture is None else here + resample(picture, taps, True, False)
    return picture if has_aux else x


def song(state, options, x, label, classes):
    w = Weights(state)
    channels = options["model_channels"] * options.get("channel_mult_noise", 1)
    if options.get("embedding_type") == "fourier":
        angle = label[:, None].to(F64) * 2 * math.pi * w["map_noise.freqs"]
        cosine, sine = torch.cos(angle), torch.sin(angle)
    else:
        cosine, sine = positional(label, channels, True)
    e = torch.cat([sine, cosine], 1)
    if options.get("label_dim"):
        e = e + w.linear("map_label", classes.to(F64) * math.sqrt(options["label_dim"]))
    e = silu(w.linear("map_layer1", silu(w.linear("map_layer0", e))))
    how = {"taps": options.get("resample_filter", [1, 1]), "scale": math.sqrt(0.5), "eps": 1e-6}
    how |= {"heads": lambda channels: 1, "adaptive": False}
    return walk(w, options, x.to(F64), e, how, True)


def dhariwal(state, options, x, label, classes):
    w = Weights(state)
    e = torch.cat(positional(label, options["model_channels"], False), 1)
    e = w.linear("map_layer1", silu(w.linear("map_layer0", e)))
    if options.get("label_dim"):
        e = e + w.linear("map_label", classes.to(F64))
    how = {"taps": [1, 1], "scale": 1.0, "eps": 1e-5, "heads": lambda channels: channels // 64, "adaptive": True}
    x = walk(w, options, x.to(F64), silu(e), how, False)
    return w.conv("out_conv", silu(w.norm("out_norm", x, 1e-5)))
