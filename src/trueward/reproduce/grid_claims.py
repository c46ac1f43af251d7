r"""What Discriminator Guidance and DiffRS promise of the grid of :mod:`trueward.reproduce.grid`, and whether it holds.

A *factor* compares two cells seed by seed: with v_s and w_s the same measure of both for seed s,

    factor = exp( mean_s log (v_s / w_s) ),      interval: Student's t over the seeds, 95 %.

"At least c times smaller" holds if the factor is at least c and its interval lies above 1. A share of samples that is nought
in one of n = 10 000 is taken as half a sample, so that the factor stays finite. A claim that nothing changes holds if the
factor lies within 20 % of 1, and one about a budget if every seed keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

METHODS = ("discriminator-guidance", "diffrs")
MEASURES = ("off-mode", "mode KL", "TV")
SMALLEST = 0.5 / 10_000

Cells = Mapping[str, Mapping[str, Mapping[str, float]]]
Claim = dict[str, Any]


def values(cells: Cells, name: str, measure: str) -> np.ndarray:
    """One measure of a cell, (seeds,)."""
    return np.array([cells[name][seed][measure] for seed in sorted(cells[name], key=int)], dtype=np.float64)


def interval(x: np.ndarray) -> tuple[float, float, float]:
    """Mean of x (seeds,) and the ends of its 95 % interval (Student's t)."""
    from scipy.stats import t

    half = t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def factor(cells: Cells, worse: str, better: str, measure: str) -> tuple[float, float, float]:
    """By what factor `measure` is larger in the cell `worse` than in `better`, with its interval."""
    a, b = (np.maximum(values(cells, name, measure), SMALLEST) for name in (worse, better))
    mean, low, high = (math.exp(v) for v in interval(np.log(a / b)))
    return mean, low, high


def smaller(cells: Cells, better: str, worse: str, measure: str, margin: float = 1.0) -> Claim:
    """The claim that `better` has at most 1/margin of the `measure` of `worse`."""
    mean, low, high = factor(cells, worse, better, measure)
    return {"holds": mean >= margin and low > 1.0, "measured": f"{mean:.2f} times ({low:.2f} to {high:.2f})"}


def unchanged(cells: Cells, name: str, measure: str) -> Claim:
    """The claim that `measure` is within 20 % of the base sampler's."""
    mean, low, high = factor(cells, name, "base", measure)
    return {"holds": 0.8 <= mean <= 1.2, "measured": f"{mean:.2f} times ({low:.2f} to {high:.2f})"}


def cheaper(cells: Cells, name: str, than: str) -> Claim:
    """The claim that `name` spends no more than `than`, a question to the critic counted like one to the model."""
    spent = values(cells, name, "nfe") + values(cells, name, "critic calls")
    allowed = values(cells, than, "nfe")
    return {"holds": bool((spent <= allowed).all()), "measured": f"{spent.max():.1f} of {allowed.min():.0f}"}


def _at_equal_cost(cells: Cells, name: str) -> Iterator[tuple[str, Claim]]:
    """Better than the base sampler with twice the steps, whose cost is at least as high."""
    other = "base, twice the steps"
    yield f"{name} costs at most as much as the {other}, critic included", cheaper(cells, name, other)
    for measure in MEASURES:
        yield f"{name}: smaller {measure} than the {other}", smaller(cells, name, other, measure)


def _guidance(cells: Cells) -> Iterator[tuple[str, Claim]]:
    for measure, margin in (("off-mode", 5.0), ("mode KL", 2.0), ("TV", 1.0 / 0.85)):
        least = f"at least {margin:g} times" if margin >= 2 else "at least 15 %"
        yield f"dg (2,0): {measure} smaller by {least}", smaller(cells, "dg (2,0)", "base", measure, margin)
    for measure in MEASURES:
        yield f"the wrong sign, dg (-2,0), enlarges {measure}", smaller(cells, "base", "dg (-2,0)", measure)
    yield "too much guidance hurts: TV of dg (2,2) above dg (1,1)", smaller(cells, "dg (1,1)", "dg (2,2)", "TV")
    yield from _at_equal_cost(cells, "dg (2,0)")
    for measure in MEASURES:
        name = "shuffled dg (2,0)"
        yield f"a critic of shuffled labels leaves {measure} within 20 %", unchanged(cells, name, measure)


def _rejection(cells: Cells) -> Iterator[tuple[str, Claim]]:
    for measure, margin in (("off-mode", 5.0), ("mode KL", 4.0), ("TV", 2.0)):
        found = smaller(cells, "diffrs 0.9", "base", measure, margin)
        yield f"diffrs 0.9: {measure} smaller by at least {margin:g} times", found
    nfe = values(cells, "diffrs 0.9", "nfe")
    yield (
        "diffrs 0.9 spends fewer than 70 evaluations per sample",
        {
            "holds": bool((nfe < 70).all()),
            "measured": f"at most {nfe.max():.1f}",
        },
    )
    for low, high in (("0.5", "0.75"), ("0.75", "0.9")):
        found = smaller(cells, f"diffrs {high}", f"diffrs {low}", "TV")
        yield f"TV falls with the percentile, {low} to {high}", found
    yield from _at_equal_cost(cells, "diffrs 0.9")
    for measure in MEASURES:
        name = "shuffled diffrs 0.9"
        yield f"a critic of shuffled labels leaves {measure} within 20 %", unchanged(cells, name, measure)


def judge(cells: Cells, method: str) -> dict[str, Any]:
    """The verdict on one of :data:`METHODS`: every claim with what was measured, and the means of the cells.

    Returns:
        "verdict" ("reproduced" if every claim holds, "partly reproduced" if some of the gains over the base sampler do, else
        "not reproduced"), "seeds", "claims" and "table".
    """
    claims = dict((_guidance if method == METHODS[0] else _rejection)(cells))
    held = [claim["holds"] for claim in claims.values()]
    gains = held[: len(MEASURES)]  # the first claims are the gains over the base sampler
    verdict = "reproduced" if all(held) else "partly reproduced" if any(gains) else "not reproduced"
    table = {
        name: {
            measure: dict(zip(("mean", "low", "high"), interval(values(cells, name, measure))))
            for measure in next(iter(cells[name].values()))
            if not math.isnan(values(cells, name, measure).sum())
        }
        for name in cells
    }
    return {"verdict": verdict, "seeds": len(cells["base"]), "claims": claims, "table": table}
