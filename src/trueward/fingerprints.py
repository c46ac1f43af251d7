"""Short hashes that tell one model from another: what stored critics and folders of samples belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trueward.denoisers import Denoiser


def weights_fingerprint(title: str, weights: Mapping[str, Tensor]) -> str:
    """A short hash of some weights and a title (the kind of module, its schedule)."""
    digest = hashlib.sha256(title.encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def model_fingerprint(denoiser: Denoiser) -> str:
    """A short hash of a model's weights and schedule: two models with the same hash draw the same samples."""
    return weights_fingerprint(f"{type(denoiser).__name__} {denoiser.schedule.fingerprint}", denoiser.state_dict())
