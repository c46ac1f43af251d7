"""A model whose network computes in bfloat16 while everything around it stays as it is: for long measurements on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trueward.denoisers import Denoiser


@contextlib.contextmanager
def in_half_precision(model: Denoiser, wanted: bool) -> Iterator[None]:
    """Computes the network in bfloat16 and everything around it as before."""
    network: Any = model.network
    plain = network.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(model.device.type, torch.bfloat16):
            return plain(*args, **kwargs).float()

    if wanted:
        network.forward = forward
    try:
        yield
    finally:
        network.forward = plain
