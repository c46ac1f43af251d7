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


def measured_of(denoiser: Denoiser) -> dict[str, Tensor]:
    """What was measured of a model and goes into its answers beside the weights: the tables of its covariance, by name.

    Every denoiser around the model may have some, as its property ``measured``.
    """
    found: dict[str, Tensor] = {}
    current: object = denoiser
    while current is not None:
        found |= getattr(current, "measured", {})
        current = getattr(current, "inner", None)
    return found


def model_fingerprint(denoiser: Denoiser) -> str:
    """A short hash of a model's weights, tables and schedule: two models with the same hash draw the same samples."""
    title = f"{type(denoiser).__name__} {denoiser.schedule.fingerprint}"
    return weights_fingerprint(title, {**denoiser.state_dict(), **measured_of(denoiser)})
