"""What a comparison of samplers measured, and how it is written: HTML page, CSV, JSON.

One :class:`Cell` is one sampler at one budget with one seed. A :class:`Row` is the mean over seeds with the standard deviation
between them (of S - 1 degrees of freedom; 0 for a single seed).
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trueward import records


@dataclass(frozen=True)
class Quality:
    """How a metric is shown.

    Attributes:
        name: its key, e.g. frechet.
        title: its name for readers.
        better: "lower" or "higher".
        bounds: ends of its scale, or None.
    """

    name: str
    title: str
    better: str
    bounds: tuple[float, float] | None = None

    def best(self, values: Sequence[float]) -> float:
        """The best of some values, NaN if there is none."""
        finite = [v for v in values if math.isfinite(v)]
        return (min if self.better == "lower" else max)(finite) if finite else math.nan


@dataclass(frozen=True)
class Cell:
    """One sampler at one budget with one seed.

    Attributes:
        sampler: the sampler as text, see :mod:`trueward.sampler_specs`.
        budget: network evaluations that were allowed.
        nfe: network evaluations that were made per sample, all included.
        seed: seed of the samples.
        seconds: wall time of one sample, seconds.
        metrics: what was measured, by name.
        critic: rows that a critic judged, per sample; 0 without one.
    """

    sampler: str
    budget: int
    nfe: float
    seed: int
    seconds: float
    metrics: Mapping[str, float]
    critic: float = 0.0


@dataclass(frozen=True)
class Row:
    """One sampler at one budget: means over seeds and standard deviations between them.

    `nfe` counts every network evaluation, abandoned paths of rejection included; `critic` the judgements of a critic.
    `seconds` (per sample) is that of the fastest seed: other load on the machine can only add to it.
    """

    sampler: str
    budget: int
    nfe: float
    seeds: int
    seconds: float
    metrics: Mapping[str, float]
    spread: Mapping[str, float]
    critic: float = 0.0


def value_and_spread(row: Row, metric: str) -> tuple[str, str | None]:
    """A value of a row and its spread between seeds (None for one seed) as text, to the same decimals."""
    from trueward.reports.charts import number

    value, spread = row.metrics.get(metric, math.nan), row.spread.get(metric, math.nan)
    text = number(value)
    if row.seeds < 2 or not math.isfinite(spread):
        return text, None
    return text, number(spread) if "e" in text else f"{spread:.{len(text.partition('.')[2])}f}"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Samplers of one model at equal budgets.

    Attributes:
        cells: all measurements.
        qualities: the metrics, the one that decides first.
        pictures: the first samples of every sampler and budget, all from the same noise: (k, h, w, c) uint8 images, or
            (k, 2) points.
        data: as many of the reference, for the eye.
        floor: what held-out data score in place of samples, by metric: no model is expected to do better. Empty if unknown.
        about: model, reference, number of samples, seeds, command, versions.
    """

    cells: Sequence[Cell]
    qualities: Sequence[Quality]
    pictures: Mapping[tuple[str, int], np.ndarray] = field(default_factory=dict)
    data: np.ndarray | None = None
    floor: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samplers(self) -> list[str]:
        """The samplers in the order in which they were asked for."""
        return list(dict.fromkeys(cell.sampler for cell in self.cells))

    @property
    def budgets(self) -> list[int]:
        """The budgets, ascending."""
        return sorted({cell.budget for cell in self.cells})

    @property
    def asks_critic(self) -> bool:
        """Did any of the samplers ask a critic?"""
        return any(cell.critic for cell in self.cells)

    @property
    def rows(self) -> list[Row]:
        """One row for every sampler and budget, in the order of samplers, then budgets."""
        rows = []
        for sampler in self.samplers:
            for budget in self.budgets:
                cells = [c for c in self.cells if c.sampler == sampler and c.budget == budget]
                if cells:
                    rows.append(_summary(sampler, budget, cells))
        return rows

    def best(self, budget: int) -> Row | None:
        """The row that wins at a budget by the first metric; None if nothing is comparable.

        One that spent more than the budget (rejection may) does not win at it.
        """
        quality = self.qualities[0]
        rows = [r for r in self.rows if r.budget == budget and r.nfe <= budget]
        rows = [r for r in rows if math.isfinite(r.metrics.get(quality.name, math.nan))]
        pick: Callable[..., Row] = min if quality.better == "lower" else max
        return pick(rows, key=lambda r: r.metrics[quality.name]) if rows else None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, JSON-able."""
        return {
            "about": dict(self.about),
            "metrics": [asdict(q) for q in self.qualities],
            "floor": dict(self.floor),
            "rows": [asdict(row) for row in self.rows],
            "cells": [asdict(cell) for cell in self.cells],
        }

    def to_json(self, path: str | Path) -> Path:
        """Writes :meth:`to_dict` as JSON."""
        records.write_json(path, self.to_dict())
        return Path(path)

    def to_csv(self, path: str | Path) -> Path:
        """Writes the rows as CSV: sampler, budget, nfe, critic, seeds, seconds_per_sample, then metric and metric_sd for every metric."""
        names = [q.name for q in self.qualities]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        head = ["sampler", "budget", "nfe", "critic", "seeds", "seconds_per_sample"]
        writer.writerow(head + [column for name in names for column in (name, f"{name}_sd")])
        for row in self.rows:
            values = [v for name in names for v in (row.metrics.get(name, math.nan), row.spread.get(name, math.nan))]
            writer.writerow(
                [
                    row.sampler,
                    row.budget,
                    f"{row.nfe:g}",
                    f"{row.critic:g}",
                    row.seeds,
                    f"{row.seconds:.6g}",
                    *(f"{v:.6g}" for v in values),
                ]
            )
        records.write_text(path, text.getvalue())
        return Path(path)

    def to_html(self, path: str | Path) -> Path:
        """Writes one self-contained page: no file beside it, nothing from the network."""
        from trueward.reports.comparison_page import page

        records.write_text(path, page(self))
        return Path(path)

    def write(self, path: str | Path) -> list[Path]:
        """Writes the page to `path` and JSON and CSV beside it."""
        path = Path(path)
        return [self.to_json(path.with_suffix(".json")), self.to_csv(path.with_suffix(".csv")), self.to_html(path)]


def _summary(sampler: str, budget: int, cells: Sequence[Cell]) -> Row:
    names = list(dict.fromkeys(name for cell in cells for name in cell.metrics))
    metrics, spread = {}, {}
    for name in names:
        values = [cell.metrics.get(name, math.nan) for cell in cells]
        finite = all(math.isfinite(v) for v in values)
        metrics[name] = statistics.fmean(values) if finite else math.nan
        spread[name] = (statistics.stdev(values) if len(values) > 1 else 0.0) if finite else math.nan
    nfe = statistics.fmean(c.nfe for c in cells)
    critic = statistics.fmean(c.critic for c in cells)
    return Row(sampler, budget, nfe, len(cells), min(c.seconds for c in cells), metrics, spread, critic)
