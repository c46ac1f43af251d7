"""What each process does in the test of gathering; a module of its own, so that a process imports little."""

from __future__ import annotations

import torch
from torch import distributed

from trueward.metrics import FrechetStatistics


def points() -> torch.Tensor:
    return torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e3


def gather(rank: int, world: int, rendezvous: str, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    found = FrechetStatistics()
    if rank < world - 1:  # the last process has seen nothing
        found.update(points()[rank :: world - 1])
    found.all_reduce().save(f"{folder}/{rank}")
    distributed.destroy_process_group()
