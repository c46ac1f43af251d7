"""Several processes at one job: who am I, and how do we bring together what each has made?

A launcher (`accelerate launch`, `torchrun`) starts the same command several times and tells each its rank. Where work needs
no coordination (shards of samples) that is all there is to know. Where results are to be brought together, processes first
:func:`join` one group, over gloo on the CPU or nccl between NVIDIA GPUs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed


def launched() -> tuple[int, int]:
    """(rank, number of processes) as the launcher says; (0, 1) without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join() -> tuple[int, int]:
    """Makes this process part of the group it was launched in, if it was; returns (rank, number of processes)."""
    if launched()[1] > 1 and not _joined():
        from accelerate import PartialState

        # processes on a machine without an accelerator find each other only if they are told that there is none
        PartialState(cpu=not torch.accelerator.is_available())
    return here()


def here() -> tuple[int, int]:
    """(rank, number of processes) of the group that was joined; (0, 1) where there is none."""
    return (distributed.get_rank(), distributed.get_world_size()) if _joined() else (0, 1)


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _device() -> torch.device:
    """Where tensors must be to be sent: nccl sends from the GPU only."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if distributed.get_backend() == "nccl"
        else torch.device("cpu")
    )


def sum_over_processes(sums: Tensor) -> Tensor:
    """The sum of everybody's `sums`, in every process and on the device of each; alone, `sums` itself."""
    if not _joined():
        return sums
    total = sums.to(_device())
    distributed.all_reduce(total)
    return total.to(sums.device)


def gather_rows(rows: Tensor | None) -> list[Tensor]:
    """Everybody's `rows` (n_r, *width) in every process, by rank, on the CPU; processes without any give None.

    Raises:
        ValueError: in all processes, if nobody has rows or they differ in width or type.
    """
    if here()[1] == 1:
        if rows is None:
            raise ValueError("There are no rows to bring together.")
        return [rows.cpu()]
    told = None if rows is None else [len(rows), list(rows.shape[1:]), str(rows.dtype).removeprefix("torch.")]
    shapes = gather_json(told)
    known = {(tuple(shape[1]), shape[2]) for shape in shapes if shape is not None}
    if len(known) != 1:
        raise ValueError(f"Rows of one width and type can be brought together, got {sorted(known) or 'none'}.")
    ((width, dtype),) = known
    most = max(shape[0] for shape in shapes if shape is not None)
    padded = torch.zeros(most, *width, dtype=getattr(torch, dtype), device=_device())
    if rows is not None:
        padded[: len(rows)] = rows.to(padded.device)
    received = [torch.empty_like(padded) for _ in shapes]
    distributed.all_gather(received, padded)
    return [part[: shape[0] if shape else 0].cpu() for part, shape in zip(received, shapes)]


def gather_json(mine: Any) -> list[Any]:
    """Everybody's object in every process, by rank; anything JSON holds, and NaN and infinity."""
    if here()[1] == 1:
        return [mine]
    text = torch.frombuffer(bytearray(json.dumps(mine), "utf-8"), dtype=torch.uint8).to(_device())
    length = torch.tensor([len(text)], device=text.device)
    lengths = [torch.zeros_like(length) for _ in range(here()[1])]
    distributed.all_gather(lengths, length)
    padded = torch.zeros(int(max(lengths)), dtype=torch.uint8, device=text.device)
    padded[: len(text)] = text
    received = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(received, padded)
    return [json.loads(bytes(part[: int(n)].tolist())) for part, n in zip(received, lengths)]


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """A piece of work that every process does its share of: what one of them meets is raised in all.

    Without it the others would wait for the one that failed. Nothing may be brought together inside.

    Raises:
        ValueError: in the other processes, saying which one failed and how.
    """
    met: Exception | None = None
    try:
        yield
    except Exception as error:
        met = error
    others = gather_json(None if met is None else f"{type(met).__name__}: {met}") if here()[1] > 1 else []
    if met is not None:
        raise met
    for rank, what in enumerate(others):
        if what is not None:
            raise ValueError(f"Process {rank} failed: {what}")
