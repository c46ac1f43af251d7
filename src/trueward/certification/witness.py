"""Models that observe who calls them: exact truths that count, remember or wait."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch
from torch import Tensor, nn

from trueward.denoisers import Denoiser, Guided, Posterior
from trueward.schedules import Time


class Counting(Guided):
    """Counts the calls made of it."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.calls = 0

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        self.calls += 1
        return self.inner(x_t, t, **condition)


class Trainable(Guided):
    """Multiplies the posterior mean by a parameter (of value one), so that a forgotten gradient graph shows."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        posterior = self.inner(x_t, t, **condition)
        return posterior.replace(mean=posterior.mean * self.scale.to(x_t.dtype))


class TakingTurns(Guided):
    """Waits at every call until the other thread has come to its own call: two runs interleave as closely as they can.

    When one of the two has finished, the barrier is aborted and the other runs on.
    """

    def __init__(self, inner: Denoiser, barrier: threading.Barrier) -> None:
        super().__init__(inner)
        self.barrier = barrier

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.barrier.wait(timeout=2.0)
        return self.inner(x_t, t, **condition)
