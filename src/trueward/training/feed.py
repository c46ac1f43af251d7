"""What a training eats: which samples are trained on and which held out, checked first, fetched one step ahead."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from trueward.denoisers import Denoiser
from trueward.training.config import TrainingConfig
from trueward.training.order import DataOrder, mixed_seed

VALIDATION_ROWS = 1024
_LOOKED_AT = 2**27  # values looked at before training; the data of a run in memory are looked at whole


class TrainingData(Protocol):
    """What the trainer needs of a dataset."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    data_range: tuple[float, float] | None
    num_classes: int | None

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, /) -> dict[str, Tensor]:
        """The samples with these numbers as ``{"x": ..., "class_labels": ...}``."""


def as_dataset(data: Any) -> TrainingData:
    """`data` itself if it can be trained on, else what :func:`trueward.data.load_data` makes of it."""
    if all(hasattr(data, name) for name in ("batch", "shape", "data_range", "num_classes", "__len__")):
        return data
    from trueward.data import load_data

    return load_data(data)


def check_data(data: TrainingData, denoiser: Denoiser) -> None:
    """Refuses data that the model cannot learn.

    Raises:
        ValueError: if shape, classes or range disagree, or a first look finds NaN, values out of range or wrong labels.
    """
    known = denoiser.num_classes
    if denoiser.shape is not None and tuple(data.shape) != tuple(denoiser.shape):
        raise ValueError(
            f"The data have samples of shape {tuple(data.shape)}, but the denoiser takes {denoiser.shape}."
        )
    if known is not None and data.num_classes is None:
        raise ValueError(f"The denoiser is conditioned on {known} classes, but the data have no labels.")
    if known is not None and (data.num_classes or 0) > known:
        raise ValueError(f"The data have {data.num_classes} classes, but the denoiser knows {known}.")
    data_range = denoiser.data_range if denoiser.data_range is not None else data.data_range
    pieces = torch.arange(len(data)).split(4096)
    for numbers in pieces[: max(1, _LOOKED_AT // max(1, 4096 * math.prod(data.shape)))]:
        batch = data.batch(numbers)
        x, labels = batch["x"], batch.get("class_labels")
        finite = x.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            raise ValueError(f"Sample {int(numbers[~finite][0])} of the data holds NaN or infinite values.")
        if data_range is not None:
            low, high = data_range
            slack = 1e-4 * (high - low)
            if float(x.min()) < low - slack or float(x.max()) > high + slack:
                raise ValueError(
                    f"The data must lie in [{low:g}, {high:g}], but reach from {float(x.min()):g} to {float(x.max()):g}."
                )
        if labels is not None and known is not None and bool(((labels < 0) | (labels >= known)).any()):
            wrong = (labels < 0) | (labels >= known)
            raise ValueError(
                f"Labels must lie in 0 ... {known - 1}, but sample {int(numbers[wrong][0])} has {int(labels[wrong][0])}."
            )


class Feed:
    """The batches of one process.

    Args:
        data: what to train on; `validation`: held-out data, or None to hold out ``config.held_out`` of `data`.
        config: batch size, pieces and seed.
        rows: which rows of every batch are this process's.

    Attributes:
        training_rows: numbers of the samples trained on; `validation_rows` those held out, at most 1024.
    """

    def __init__(self, data: TrainingData, validation: TrainingData | None, config: TrainingConfig) -> None:
        self.data, self.validation, self.config = data, validation, config
        n, held_out = len(data), config.held_out
        if validation is not None:
            self.training_rows, self.validation_rows = torch.arange(n), torch.arange(len(validation))[:VALIDATION_ROWS]
        else:
            count = int(held_out) if held_out >= 1 else int(held_out * n)
            if count >= n:
                raise ValueError(f"held_out={held_out:g} leaves nothing of the {n} samples to train on.")
            order = torch.randperm(n, generator=torch.Generator().manual_seed(mixed_seed(config.seed, 3)))
            self.training_rows = order[count:].sort().values
            self.validation_rows = order[:count][:VALIDATION_ROWS].sort().values
        self.order = DataOrder(len(self.training_rows), config.batch_size, config.seed)
        self.share(0, 1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trueward-feed")
        self._ahead: tuple[tuple[int, int], Future[dict[str, Tensor]]] | None = None

    def share(self, process: int, processes: int) -> None:
        """Says which process this is, of how many.

        Raises:
            ValueError: if the batch cannot be shared evenly.
        """
        accumulation, size = self.config.accumulation, self.config.batch_size
        if size % (processes * accumulation):
            raise ValueError(
                f"batch_size={size} must be a multiple of processes x accumulation = {processes} x {accumulation}."
            )
        self.process, self.processes = process, processes
        self.piece_size = size // processes // accumulation
        self.first_row = process * (size // processes)

    def _rows(self, piece: int) -> slice:
        start = self.first_row + piece * self.piece_size
        return slice(start, start + self.piece_size)

    def _fetch(self, step: int, piece: int) -> dict[str, Tensor]:
        return dict(self.data.batch(self.training_rows[self.order.batch(step, self._rows(piece))]))

    def piece(self, step: int, piece: int, device: torch.device) -> dict[str, Any]:
        """Piece `piece` of this process's rows of update `step`; the next one is fetched meanwhile."""
        key = (step, piece)
        if self._ahead is not None and self._ahead[0] == key:
            found = self._ahead[1].result()
        else:
            found = self._thread.submit(self._fetch, *key).result()  # in one thread, so that data need not expect two
        last = piece == self.config.accumulation - 1
        ahead = (step + 1, 0) if last else (step, piece + 1)
        self._ahead = (ahead, self._thread.submit(self._fetch, *ahead)) if ahead[0] < self.config.steps else None
        rows = self._rows(piece)
        batch: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in found.items()}
        return {**batch, "rows": torch.arange(rows.start, rows.stop, device=device), "total": self.config.batch_size}

    def held_out(self, device: torch.device) -> Iterator[dict[str, Any]]:
        """This process's share of the held-out samples, in batches."""
        source = self.data if self.validation is None else self.validation
        total = len(self.validation_rows)
        for rows in torch.arange(total)[self.process :: self.processes].split(256):
            found = self._thread.submit(source.batch, self.validation_rows[rows]).result()
            yield {**{k: v.to(device) for k, v in found.items()}, "rows": rows.to(device), "total": total}
