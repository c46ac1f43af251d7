r"""The exponential moving average of the weights: what a diffusion model is sampled with.

After update n = 1, 2, ...

    average <- average + (1 - d_n)(weights - average),   d_n = min(decay, (1 + n) / (10 + n))

The warm-up lets the average forget the random start: without it, a decay of 0.9999 remembers the initial weights for tens
of thousands of updates. The average is float32 whatever the weights are; buffers are copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """A float32 average of a module's floating-point weights.

    Args:
        module: whose weights to average; the average starts at them.
        decay: in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"The decay of the average must lie in [0, 1), got {decay}.")
        self.decay, self.updates = decay, 0
        self.names = [name for name, p in module.named_parameters() if p.is_floating_point()]
        parameters = dict(module.named_parameters())
        self.average = [parameters[name].detach().to(torch.float32, copy=True) for name in self.names]

    def rate(self, n: int) -> float:
        """d_n, the decay of the n-th update."""
        return min(self.decay, (1.0 + n) / (10.0 + n))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the module's weights."""
        self.updates += 1
        parameters = dict(module.named_parameters())
        weights = [parameters[name].to(torch.float32) for name in self.names]
        torch._foreach_lerp_(self.average, weights, 1.0 - self.rate(self.updates))

    @torch.no_grad()
    def copy_to(self, module: nn.Module, source: nn.Module | None = None) -> None:
        """Writes the average into another module's weights; its buffers become those of `source`, if given."""
        parameters = dict(module.named_parameters())
        for name, value in zip(self.names, self.average, strict=True):
            parameters[name].copy_(value)
        if source is not None:
            buffers = dict(source.named_buffers())
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name."""
        return dict(zip(self.names, self.average, strict=True))

    def load_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        """Continues from a stored average."""
        for name, value in zip(self.names, self.average, strict=True):
            value.copy_(state[name])
        self.updates = updates
