"""Compare samplers of one model at equal cost: the same network evaluations, the same noise, the same reference."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward import processes, records
from trueward.critics import Critic, with_critic
from trueward.data import Dataset
from trueward.denoisers import Denoiser
from trueward.drawing import Drawing
from trueward.fingerprints import model_fingerprint
from trueward.refinement import Cost, RefinedSampler
from trueward.reports.comparison import Cell, Comparison
from trueward.reports.judge import Judge
from trueward.sampler_specs import SamplerSpec, parse_samplers
from trueward.samplers import NonFiniteSamples, Sampler


@dataclass(frozen=True)
class CellStep:
    """What `callback` sees after every batch and every cell.

    Attributes:
        sampler, budget, seed: the cell at work.
        done: samples drawn so far, in all.
        total: samples to draw in all.
    """

    sampler: str
    budget: int
    seed: int
    done: int
    total: int


def compare(
    denoiser: Denoiser,
    samplers: str | Sequence[str | SamplerSpec],
    steps: Sequence[int],
    reference: Tensor | Dataset,
    *,
    n: int = 2048,
    seeds: Sequence[int] = (0, 1, 2),
    metrics: Sequence[str] | None = None,
    features: Any = None,
    held_out: Tensor | Dataset | None = None,
    labels: Sequence[int] | None = None,
    guidance: float | None = None,
    batch_size: int = 256,
    show: int = 16,
    about: Mapping[str, Any] | None = None,
    critic: Critic | str | Path | None = None,
    memory: str | Path | None = None,
    callback: Callable[[CellStep], None] | None = None,
    together: bool = False,
) -> Comparison:
    """Draws `n` samples with every sampler at every budget and seed, and measures them against a reference.

    Args:
        denoiser: the model.
        samplers: names with options, e.g. ``["ddim", "dpm-solver++:order=3"]`` or the same as one text with commas.
        steps: budgets in network evaluations; a sampler whose step costs more than one makes fewer steps. Rejection spends
            more than the budget of its base sampler; the table says how much.
        reference: the data that samples should look like: (m, *shape) in data units, or a dataset.
        n: samples in each cell.
        seeds: one cell for each; the spread between them is the error bar.
        metrics, features: what to measure and on which features; see :class:`~trueward.reports.judge.Judge`.
        held_out: data that are not in `reference`; their score is the floor no model is expected to beat.
        labels: classes taken in turn (None: no class); guidance: scale of classifier-free guidance.
        batch_size: samples in one call of the model.
        show: samples to show in pictures.
        about: put into the report as it is: the model's name and record, the reference's.
        critic: for samplers with ``+dg`` or ``+diffrs``: a critic, or the folder of one; default: beside the model.
        memory: file that remembers finished cells, so that an interrupted comparison continues; delete it when done.
        callback: called with a :class:`CellStep` after every batch.
        together: share the cells with the other processes of the joined group (:mod:`trueward.processes`), all of which call
            this with the same arguments; a cell is the same whoever measures it. Only the first has all pictures.

    Raises:
        ValueError: unknown sampler, option or metric; a budget too small for a sampler; reference of another shape.
    """
    began = time.perf_counter()
    specs = parse_samplers(samplers) if isinstance(samplers, str) else [_spec(s) for s in samplers]
    budgets = sorted(set(steps))
    if not specs or not budgets or not seeds:
        raise ValueError("A comparison needs at least one sampler, one budget and one seed.")
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}.")
    shape = reference.shape if isinstance(reference, Dataset) else tuple(reference.shape[1:])
    if denoiser.shape is not None and shape != denoiser.shape:
        raise ValueError(f"The reference has samples of shape {shape}, but the model draws {denoiser.shape}.")
    # everything that can be refused is refused before the first sample
    classes = None if labels is None else tuple(labels)
    if any(spec.refined for spec in specs) and not isinstance(critic, Critic):
        critic = with_critic(denoiser, critic)
    chosen = {
        (str(spec), budget): spec.assemble(denoiser, nfe=budget, critic=critic, labels=classes, guidance=guidance)
        for spec in specs
        for budget in budgets
    }
    for _, sampler in chosen.values():
        sampler.plan(denoiser.schedule)
    judge = Judge(reference, metrics=metrics, features=features, data_range=denoiser.data_range, together=together)
    drawings = {
        (key, seed): Drawing(model, sampler, seed, classes, guidance)
        for key, (model, sampler) in chosen.items()
        for seed in seeds
    }
    rank, world = processes.here() if together else (0, 1)
    known = _Memory(
        memory,
        {
            "model": model_fingerprint(denoiser),
            "n": n,
            "judge": judge.identity(),
            "labels": classes,
            "guidance": guidance,
        },
        rank,
    )
    cells: dict[int, Cell] = {}
    firsts: dict[int, Tensor] = {}
    mine = list(enumerate(drawings.items()))[rank::world]
    total, done = len(mine) * n, 0
    with processes.all_or_none() if together else contextlib.nullcontext():
        for number, (((name, budget), seed), drawing) in mine:
            cell = known.get(drawing.sampler, name, budget, seed)
            if cell is None:

                def advance(
                    count: int, name: str = name, budget: int = budget, seed: int = seed, before: int = done
                ) -> None:
                    if callback is not None:
                        callback(CellStep(name, budget, seed, before + count, total))

                cell, first = _measure(drawing, name, budget, n, batch_size, judge, advance, show)
                if first is not None:
                    firsts[number] = first
                known.add(drawing.sampler, cell)
            done += n
            if callback is not None:
                callback(CellStep(name, budget, seed, done, total))
            cells[number] = cell
    if world > 1:
        found = processes.gather_json([[number, asdict(cell)] for number, cell in cells.items()])
        cells = {number: Cell(**cell) for part in found for number, cell in part}
    pictures: dict[tuple[str, int], np.ndarray] = {}
    for number, (((name, budget), seed), drawing) in enumerate(drawings.items()):
        if seed == seeds[0] and math.isfinite(cells[number].nfe) and rank == 0:
            if number not in firsts:  # remembered, or measured by another process
                firsts[number] = _draw(drawing, min(show, n), batch_size)[0]
            pictures[name, budget] = _picture(firsts[number], denoiser.data_range)
    floor: dict[str, float] = {}
    if held_out is not None and len(held_out) > 10:
        floor = judge(_rows(held_out, _spread_out(len(held_out), n)))
    pictures = {key: value for key, value in pictures.items() if value.size}
    data = _picture(_rows(reference, _spread_out(len(reference), show)), denoiser.data_range)
    told = {"samples": n, "seeds": list(seeds), **judge.about(), **(about or {}), **records.circumstances()}
    if world > 1:
        told["processes"] = world
    told["seconds"] = round(time.perf_counter() - began, 1)
    if floor:
        told["held-out data"] = f"{min(n, len(held_out))} samples"  # type: ignore[arg-type]
    return Comparison(
        [cells[number] for number in sorted(cells)], judge.qualities, pictures, data if data.size else None, floor, told
    )


def _spec(sampler: str | SamplerSpec) -> SamplerSpec:
    return sampler if isinstance(sampler, SamplerSpec) else SamplerSpec.parse(sampler)


def _rows(x: Tensor | Dataset, indices: Tensor) -> Tensor:
    """Some rows of a tensor or dataset."""
    return x.batch(indices)["x"] if isinstance(x, Dataset) else x[indices]


def _spread_out(n: int, count: int) -> Tensor:
    """`count` indices evenly spread over 0 ... n-1."""
    return torch.linspace(0, n - 1, min(n, count), dtype=torch.float64).long()


def _draw(
    drawing: Drawing, n: int, batch_size: int, advance: Callable[[int], None] | None = None
) -> tuple[Tensor, Cost, float]:
    """(samples on the CPU, what they cost, seconds per sample)."""
    parts, cost, seconds, done = [], Cost(), 0.0, 0
    drawing.prepare(batch_size)

    def count(finished: int) -> None:
        nonlocal done
        done += finished
        if advance is not None:
            advance(done)

    batches = drawing.batches(0, n, batch_size, count)
    while cost.samples < n:
        began = time.perf_counter()
        batch = next(batches)
        parts.append(batch.x.cpu())  # to the CPU inside the clock: a GPU answers before it has computed
        seconds += time.perf_counter() - began
        cost += batch.cost
    return torch.cat(parts), cost, seconds / n


def _measure(
    drawing: Drawing,
    name: str,
    budget: int,
    n: int,
    batch_size: int,
    judge: Judge,
    advance: Callable[[int], None],
    show: int,
) -> tuple[Cell, Tensor | None]:
    """One cell and the samples to show; a sampler that diverges gets NaN for its metrics instead of ending the comparison."""
    try:
        x, cost, seconds = _draw(drawing, n, batch_size, advance)
    except NonFiniteSamples:
        nothing = {quality.name: math.nan for quality in judge.qualities}
        return Cell(name, budget, math.nan, drawing.seed, math.nan, nothing), None
    nfe, critic = cost.nfe_per_sample, cost.critic_per_sample
    return Cell(name, budget, nfe, drawing.seed, seconds, judge(x), critic), x[:show]


def _picture(x: Tensor, data_range: tuple[float, float] | None) -> np.ndarray:
    """Images as uint8 (k, h, w, c), points of the plane as (k, 2), nothing for other shapes."""
    if x.ndim == 4 and x.shape[1] in (1, 3):
        from trueward.data.images import to_images

        return to_images(x, data_range)
    if x.ndim == 2 and x.shape[1] == 2:
        return x.double().numpy()
    return np.zeros((0, 2))


def memory_of(path: str | Path, rank: int) -> Path:
    """Where process `rank` remembers its cells: `path` itself for the first."""
    path = Path(path)
    return path if rank == 0 else path.with_name(f"{path.name}.{rank}")


def memories(path: str | Path) -> list[Path]:
    """The files in which processes have remembered cells."""
    path = Path(path)
    others = path.parent.glob(f"{path.name}.*") if path.parent.is_dir() else []
    return [
        found for found in [path, *sorted(others)] if found.is_file() and (found == path or found.suffix[1:].isdigit())
    ]


class _Memory:
    """Finished cells of an interrupted comparison, one JSON line each.

    Every process writes a file of its own and reads those of all, so that another number of them can go on.
    """

    def __init__(self, path: str | Path | None, common: dict[str, Any], rank: int = 0) -> None:
        self.path = None if path is None else memory_of(path, rank)
        self.common = common
        self.cells: dict[str, Cell] = {}
        for stored_in in [] if path is None else memories(path):
            for line in stored_in.read_text(encoding="utf-8").splitlines():
                try:
                    stored = json.loads(line)
                    cell = stored["cell"]
                    cell["metrics"] = {k: math.nan if v is None else float(v) for k, v in cell["metrics"].items()}
                    self.cells[stored["key"]] = Cell(**cell)
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # the line that was being written when the power went

    def key(self, sampler: Sampler | RefinedSampler, name: str, budget: int, seed: int) -> str:
        identity = json.dumps([self.common, repr(sampler), name, budget, seed], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:24]

    def get(self, sampler: Sampler | RefinedSampler, name: str, budget: int, seed: int) -> Cell | None:
        return self.cells.get(self.key(sampler, name, budget, seed))

    def add(self, sampler: Sampler | RefinedSampler, cell: Cell) -> None:
        if self.path is None or not math.isfinite(cell.nfe):
            return
        line = {"key": self.key(sampler, cell.sampler, cell.budget, cell.seed), "cell": asdict(cell)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line).replace("NaN", "null") + "\n")
