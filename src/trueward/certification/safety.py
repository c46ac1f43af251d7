r"""Does any allowed combination of options give NaN, explode, or die of something else than a clear ValueError?

The space is grids x schedules x options x steps x dtype. It is visited in three sweeps: every grid under every schedule with
the options left alone, every value of every option alone, and combinations drawn at random (with a fixed seed); the thorough
examination visits all of it, up to a bound.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from trueward.certification.certificate import FAIL, PASS, Finding
from trueward.certification.subject import Setting, Subject, same_start
from trueward.certification.witness import Counting
from trueward.schedules import Schedule
from trueward.truth import GaussianMixture

_STEPS = (1, 2, 3, 4, 5, 10)
_SHAPE = (4,)
# Samples of data of scale one beyond this have exploded.
_EXPLODED = 1e6
_THOROUGH_BOUND = 20_000

# Two point masses, where posteriors are sharpest, beside a broad Gaussian: four numbers to a sample.
TRUTH = GaussianMixture(
    [0.3, 0.3, 0.4],
    [[0.9, -0.5, 0.1, 0.4], [-0.9, 0.3, 0.2, -0.6], [0.0, 0.1, -0.1, 0.0]],
    [0.0, 0.0, 0.25],
)

Case = tuple[str, Setting, int, torch.dtype]


def _cases(subject: Subject, schedules: Mapping[str, Schedule], thorough: bool, budget: int) -> Iterator[Case]:
    grids: list[str | None] = [None, *subject.grids]
    sweep = subject.sweep()
    steps = _STEPS[:1] if subject.adaptive else _STEPS
    dtypes = (torch.float64, torch.float32)
    names = list(schedules)
    if thorough:
        values = itertools.product(*sweep.values())
        everything = itertools.product(names, grids, values, steps, dtypes)
        for name, grid, value, n, dtype in itertools.islice(everything, _THOROUGH_BOUND):
            yield name, Setting(grid, tuple(zip(sweep, value))), n, dtype
        return
    for name, grid, n in itertools.product(names, grids, steps):
        yield name, Setting(grid), n, torch.float32
    for option, options in sweep.items():
        for value, n, dtype in itertools.product(options[1:], steps, dtypes):
            yield names[0], Setting(None, ((option, value),)), n, dtype
    draw = random.Random(0)
    for _ in range(budget if sweep else 0):
        # t_end = 0 is refused by most grids; it is tried alone, so that combinations are spent on what can run
        chosen = tuple((option, draw.choice(values)) for option, values in sweep.items() if option != "t_end")
        yield draw.choice(names), Setting(draw.choice(grids), chosen), draw.choice(steps), draw.choice(dtypes)


def nan_safety(
    subject: Subject, schedules: Mapping[str, Schedule], *, thorough: bool = False, budget: int = 200
) -> tuple[Finding, Finding]:
    """Sweeps the option space.

    Returns:
        Two findings: about NaN and exploding samples, with every bad combination; and about the number of network
        evaluations, which is counted on the way and compared with what the subject promises and reports.
    """
    bad: dict[tuple[str, str], list[str]] = {}
    miscounts: list[str] = []
    runs = refused = promised = 0
    last_refusal = ""
    models = {name: Counting(TRUTH.denoiser(schedule, covariance="diagonal")) for name, schedule in schedules.items()}
    for model in models.values():
        model.data_range = (-1.5, 1.5)
    done: set[Case] = set()
    for case in _cases(subject, schedules, thorough, budget):
        if case in done:
            continue
        done.add(case)
        name, setting, n, dtype = case
        schedule, model = schedules[name], models[name]
        model.calls = 0
        runs += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = subject.run(model, schedule, same_start(schedule, _SHAPE, 3, dtype), n, setting=setting)
                claim = subject.nfe(schedule, n, setting)
        except ValueError as error:
            if not subject.is_breakdown(error):
                refused, last_refusal = refused + 1, str(error)
                continue
            wrong = "NaN or infinite samples"
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        else:
            wrong = verdict_on(outcome.x)
            for said, count in (("promises", claim), ("reports", outcome.reported_nfe)):
                promised += count is not None
                if count is not None and count != model.calls:
                    miscounts.append(f"{said} {count}, made {model.calls} ({name}, {setting}, {n} steps)")
        if wrong:
            bad.setdefault((wrong, str(setting)), []).append(f"{name}, {n} steps, {str(dtype).removeprefix('torch.')}")
    if refused == runs:
        nothing = (
            f"all {runs} combinations of schedule, grid, options, steps and dtype are refused, last: {last_refusal}"
        )
        return Finding("NaN-safety", FAIL, nothing), Finding("network evaluations", FAIL, "nothing could be counted")
    return _about_nan(bad, runs, refused), _about_nfe(miscounts, promised, runs - refused, subject, models, schedules)


def verdict_on(x: torch.Tensor) -> str:
    """What is wrong with samples, if anything."""
    if not bool(x.isfinite().all()):
        return "NaN or infinite samples"
    return f"samples beyond {_EXPLODED:g}" if x.abs().max() > _EXPLODED else ""


def _about_nan(bad: Mapping[tuple[str, str], Sequence[str]], runs: int, refused: int) -> Finding:
    check = "NaN-safety"
    scope = f"{runs} combinations of schedule, grid, options, steps and dtype ({refused} refused with a clear message)"
    if not bad:
        return Finding(check, PASS, f"finite in all of {scope}")
    details: list[Any] = [{"what": what, "setting": s, "where": list(where)} for (what, s), where in bad.items()]
    (what, setting), where = next(iter(bad.items()))
    count = sum(map(len, bad.values()))
    return Finding(check, FAIL, f"{count} of {scope} break, first: {what} with {setting} at {where[0]}", details)


def _about_nfe(
    miscounts: Sequence[str],
    promised: int,
    finished: int,
    subject: Subject,
    models: Mapping[str, Counting],
    schedules: Mapping[str, Schedule],
) -> Finding:
    check = "network evaluations"
    if miscounts:
        return Finding(check, FAIL, f"{len(miscounts)} wrong counts, first: {miscounts[0]}", list(miscounts[:50]))
    name, model = next(iter(models.items()))
    cost = []
    for n in (5, 10, 20):
        model.calls = 0
        with contextlib.suppress(Exception):  # which belongs to other lines of the certificate
            subject.run(model, schedules[name], same_start(schedules[name], _SHAPE, 2), n)
            cost.append(f"{model.calls} at {n}")
        if subject.adaptive:
            cost = [f"{model.calls} with its default tolerances"]
    spends = f"{', '.join(cost)} steps" if not subject.adaptive else cost[0]
    if not promised:
        return Finding(check, "not applicable", f"makes no promise; spends {spends}")
    return Finding(check, PASS, f"exact in {finished} runs: {spends}")
