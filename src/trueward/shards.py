"""Many samples into a folder, in shards: interrupted at any moment it continues, and several processes share the work.

A folder holds ``shard-00000.safetensors``, ``shard-00001.safetensors``, ... and ``sampling.json``. Shard k holds the samples
with indices k size ... (k+1) size - 1 as

    samples  (rows, *shape)  uint8 (0 ... 255 over the model's data range) or float32 (data units)
    indices  (rows,)         int64
    labels   (rows,)         int64, for class-conditional samples
    nfe      (rows,)         int64, network evaluations on the path of each, for samples of rejection

Sample i depends on the seed and i alone, so shards need no coordination: process r of w makes the shards k with k mod w = r
that are not there yet, and whoever finishes last writes the final record. There is nothing to wait for and no process group,
so a machine that drops out costs the shard it was at. A shard is written to a temporary name and renamed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trueward import processes, records
from trueward.drawing import Drawing
from trueward.refinement import Cost

RECORD = "sampling.json"
FORMAT = 1
AMPLE = 64  # batches of rejection in a shard, so that running dry at its end costs a few per cent


def to_stored(x: Tensor, dtype: str, data_range: tuple[float, float] | None) -> Tensor:
    """Samples as they are stored: float32, or uint8 with 0 ... 255 spanning `data_range` (values outside are clamped)."""
    if dtype == "float32":
        return x.to("cpu", torch.float32).contiguous()
    if data_range is None:
        raise ValueError("This model's data have no stated range, so they cannot be stored as uint8: use float32.")
    low, high = data_range
    return ((x - low) * (255.0 / (high - low))).round_().clamp_(0, 255).to("cpu", torch.uint8).contiguous()


def from_stored(samples: Tensor, data_range: tuple[float, float] | None) -> Tensor:
    """The inverse of :func:`to_stored`: float32 in data units."""
    if samples.dtype != torch.uint8:
        return samples.to(torch.float32)
    if data_range is None:
        raise ValueError("uint8 samples need a data range to be read in data units.")
    low, high = data_range
    return samples.to(torch.float32) * ((high - low) / 255.0) + low


@dataclass(frozen=True)
class Progress:
    """What `callback` sees after every batch: samples finished by this process and its share, and how many were there already."""

    done: int
    share: int
    found: int


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards, finished or not.

    Raises (on reading):
        ValueError: if the folder has no ``sampling.json`` or it is of another make.
    """

    folder: Path

    @classmethod
    def is_one(cls, folder: str | Path) -> bool:
        """Does the folder hold sharded samples?"""
        return (Path(folder) / RECORD).is_file()

    @property
    def record(self) -> dict[str, Any]:
        """The contents of ``sampling.json``."""
        path = Path(self.folder) / RECORD
        record = records.read_json(path)
        if not isinstance(record, dict) or record.get("format") != FORMAT or "config" not in record:
            raise ValueError(f"{path} is not a record of sharded samples (format {FORMAT}).")
        return record

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return Path(self.folder) / f"shard-{shard:05d}.safetensors"

    def rows(self, shard: int) -> int | None:
        """How many samples a shard holds; None if it is missing or cut short."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(shard), "pt") as file:
                return file.get_slice("indices").get_shape()[0]
        except (FileNotFoundError, SafetensorError):
            return None

    def read(self, shard: int) -> dict[str, Tensor]:
        """The tensors of a shard, as stored."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path(shard))
        except SafetensorError as error:
            raise ValueError(f"{self.path(shard)} is cut short or damaged ({error}).") from None

    def write(self, shard: int, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Writes a shard atomically."""
        from safetensors.torch import save

        for left_over in self.path(shard).parent.glob(f"{self.path(shard).name}.*.part"):
            left_over.unlink(missing_ok=True)
        # bytes go through Python's own write: a full disk then is an OSError that names the file
        content = save(tensors, {key: json.dumps(value) for key, value in notes.items()})
        with records.atomic(self.path(shard)) as part:
            part.write_bytes(content)

    def notes(self, shard: int) -> dict[str, Any]:
        """What was noted with a shard: seconds, nfe."""
        from safetensors import safe_open

        with safe_open(self.path(shard), "pt") as file:
            return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}

    def cost(self, shards: int | None = None) -> Cost:
        """What the samples of the first shards (default: all) cost, where a critic refined them; else an empty account."""
        if shards is None:
            record = self.record
            shards = len(_rows(record["n"], record["config"]["shard_size"]))
        noted = [self.notes(shard).get("cost") for shard in range(shards)]
        return sum((Cost(**note) for note in noted if note), Cost())

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """All shards in order, as stored.

        Raises:
            ValueError: if one is missing: sampling has not finished.
        """
        record = self.record
        for shard, expected in enumerate(_rows(record["n"], record["config"]["shard_size"])):
            if self.rows(shard) != expected:
                raise ValueError(
                    f"{self.path(shard)} is missing or incomplete: run the same `trueward sample` again to finish it."
                )
            yield self.read(shard)

    @property
    def data_range(self) -> tuple[float, float] | None:
        """(low, high) of the data that were sampled, or None."""
        stated = self.record["config"].get("data_range")
        return None if stated is None else (float(stated[0]), float(stated[1]))

    def load(self) -> tuple[Tensor, Tensor | None]:
        """All samples (n, *shape) in data units (float32) and their labels (n,) int64, or None."""
        shards = list(self)
        samples = torch.cat([shard["samples"] for shard in shards])
        labels = torch.cat([shard["labels"] for shard in shards]) if "labels" in shards[0] else None
        return from_stored(samples, self.data_range), labels


def _rows(n: int, size: int) -> list[int]:
    """Rows of every shard of n samples."""
    return [min(size, n - first) for first in range(0, n, size)]


def default_shard_size(shape: tuple[int, ...], least: int = 0) -> int:
    """Samples in a shard: a thousand, or `least` if that is more; fewer where these would take over 256 MB as float32."""
    return max(1, min(max(1000, least), 2**28 // (4 * max(1, torch.Size(shape).numel()))))


def shard_size_for(drawing: Drawing, folder: str | Path, batch_size: int, shard_size: int | None = None) -> int:
    """Samples in a shard of this folder: as asked for, else as the folder says, else by default.

    Rejection lets its batch run dry at the end of a shard, so a shard holds 64 batches of its samples, if that is more.
    """
    if shard_size is not None:
        return shard_size
    stated = ShardFolder(Path(folder)).record["config"].get("shard_size") if ShardFolder.is_one(folder) else None
    if isinstance(stated, int) and stated >= 1:
        return stated
    return default_shard_size(drawing.denoiser.shape or (), AMPLE * batch_size if drawing.rejects else 0)


def default_dtype(shape: tuple[int, ...], data_range: tuple[float, float] | None) -> str:
    """uint8 for images of a stated range, else float32."""
    return "uint8" if data_range is not None and len(shape) == 3 and shape[0] in (1, 3) else "float32"


def sample_to_folder(
    drawing: Drawing,
    n: int,
    folder: str | Path,
    *,
    batch_size: int = Drawing.default_batch,
    shard_size: int | None = None,
    dtype: str | None = None,
    describe: dict[str, Any] | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Draws the samples 0 ... n-1 into a folder of shards; run again, it continues where it stopped.

    Under a launcher with several processes each makes its share of the shards; the files are the same for any number of
    processes. A larger `n` extends a finished folder.

    Args:
        drawing: what to draw.
        n: how many samples in all.
        folder: where; made if needed.
        batch_size: samples in one call of the model.
        shard_size: samples in a file; see :func:`shard_size_for`.
        dtype: uint8 or float32; see :func:`default_dtype`.
        describe: put into the record as it is, e.g. the name of the model.
        callback: called with a :class:`Progress` after every batch.

    Returns:
        the record, as in ``sampling.json``; its ``complete`` is false while other processes are still at work.

    Raises:
        ValueError: if the folder holds samples of another configuration (naming what differs) or more than `n`.
        OSError: if it cannot be written.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number >= 1, got {n!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    shape, data_range = drawing.denoiser.shape or (), drawing.denoiser.data_range
    size = shard_size_for(drawing, folder, batch_size, shard_size)
    if size < 1:
        raise ValueError(f"shard_size must be at least 1, got {size}.")
    dtype = default_dtype(shape, data_range) if dtype is None else dtype
    if dtype not in ("uint8", "float32"):
        raise ValueError(f"dtype must be uint8 or float32, got {dtype!r}.")
    to_stored(torch.zeros(1), dtype, data_range)  # a uint8 that cannot be is told before anything is drawn
    config = {**drawing.identity(), "data_range": data_range, "dtype": dtype, "shard_size": size}
    config = json.loads(json.dumps(config))
    target = ShardFolder(Path(folder))
    rows = _rows(n, size)
    rank, world = processes.launched()
    # a shard beside no record is refused as somebody else's, so the first process must have written the record
    deadline = time.monotonic() + 60.0
    while rank > 0 and not (target.folder / RECORD).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    _check_same(target, config, n)
    mine = [shard for shard in range(len(rows)) if shard % world == rank]
    missing = [shard for shard in mine if target.rows(shard) != rows[shard]]
    record = {
        "format": FORMAT,
        "n": n,
        "complete": False,
        "config": config,
        **(describe or {}),
        **records.circumstances(),
    }
    if rank == 0 and (missing or not ShardFolder.is_one(folder) or target.record["n"] != n):
        records.write_json(target.folder / RECORD, record)
    share = sum(rows[shard] for shard in mine)
    found = done = share - sum(rows[shard] for shard in missing)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if callback is not None:
            callback(Progress(done, share, found))

    if missing:
        drawing.prepare(batch_size, progress=rank == 0)
    for shard in missing:
        began, cost, pieces = time.perf_counter(), Cost(), []
        for batch in drawing.batches(shard * size, shard * size + rows[shard], batch_size, advance):
            pieces.append((to_stored(batch.x, dtype, data_range), batch.indices, batch.labels, batch.nfe_kept))
            cost += batch.cost
        tensors = {"samples": torch.cat([p[0] for p in pieces]), "indices": torch.cat([p[1] for p in pieces])}
        if drawing.labels is not None:
            tensors["labels"] = torch.cat([p[2] for p in pieces if p[2] is not None])
        if pieces[0][3] is not None:
            tensors["nfe"] = torch.cat([p[3] for p in pieces if p[3] is not None])
        seconds = time.perf_counter() - began
        noted: dict[str, Any] = {"seconds": seconds, "nfe": cost.nfe / rows[shard], "batch_size": batch_size}
        target.write(shard, tensors, noted | ({"cost": asdict(cost)} if cost.critic else {}))
    if all(target.rows(shard) == expected for shard, expected in enumerate(rows)):
        notes = [target.notes(shard) for shard in range(len(rows))]
        seconds = sum(note["seconds"] for note in notes)
        record |= {
            "complete": True,
            "nfe": sum(note["nfe"] * count for note, count in zip(notes, rows)) / n,
            "seconds": seconds,
            "samples_per_second": n / seconds if seconds > 0 else None,
            "batch_size": batch_size,
            "processes": world,
        }
        cost = target.cost(len(rows))
        if cost.critic:
            record["refinement"] = cost.summary()
        if missing or not target.record.get("complete"):
            records.write_json(target.folder / RECORD, record)
        else:
            return target.record
    return record


def wait_until_complete(folder: str | Path, n: int, patience: float = 3600.0, every: float = 0.5) -> dict[str, Any]:
    """The record of a folder once other processes have finished the samples 0 ... n-1.

    Args:
        folder: where they work.
        n: how many samples there are to be.
        patience: give up when no file has changed for so long, seconds.
        every: how often to look, seconds.

    Raises:
        ValueError: if nothing has happened for `patience` seconds.
    """
    target = ShardFolder(Path(folder))
    seen, since = -1, time.monotonic()
    while True:
        record = target.record if ShardFolder.is_one(folder) else {}
        if record.get("complete") and record.get("n", 0) >= n:
            return record
        there = len(list(target.folder.glob("shard-*.safetensors")))
        if there != seen:
            seen, since = there, time.monotonic()
        elif time.monotonic() - since > patience:
            raise ValueError(
                f"{folder} has not grown for {patience:g} s: another process seems to have died; run again."
            )
        time.sleep(every)


def _check_same(target: ShardFolder, config: dict[str, Any], n: int) -> None:
    """Refuses a folder that holds something else."""
    folder = target.folder
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder to put samples into.")
    if not ShardFolder.is_one(folder):
        if folder.is_dir() and any(folder.glob("shard-*.safetensors")):
            raise ValueError(f"{folder} holds shards without their {RECORD}; choose another folder.")
        return
    found = target.record
    for key in sorted(config.keys() | found["config"].keys()):
        old, new = found["config"].get(key), config.get(key)
        if old != new:
            raise ValueError(
                f"{folder} holds samples of another configuration ({key} was {old}, now {new}); choose another folder or the same {key}."
            )
    if found["n"] > n:
        raise ValueError(
            f"{folder} already holds {found['n']} samples, more than n={n}; choose another folder or a larger n."
        )
