"""Many subjects of one library measured in one go, as a table that can be published.

A survey judges nobody: it gives the order measured on every grid under every schedule, the error at a few evaluations, and
the combinations of options that break, with the versions and the command that made it. For a verdict on one of its subjects
ask :func:`~trueward.certification.certify`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch

from trueward.certification import conduct
from trueward.certification.breakdowns import Sweep, sweep
from trueward.certification.certificate import Cell, Distance
from trueward.certification.convergence import convergence, distances
from trueward.certification.law import law_convergence
from trueward.certification.subject import Setting, Subject
from trueward.naming import look_up
from trueward.schedules import Schedule
from trueward.version import __version__

# Libraries that can be surveyed as a whole, and the function that does it; imported only when asked for.
SURVEYS: dict[str, str] = {"diffusers": "trueward.integrations.diffusers_survey:survey"}

BUDGETS = (5, 10, 20, 50)
_STEPS = (20, 40, 80, 160)
LAW_STEPS = (5, 10, 20, 40, 80)
_LAW_ROWS = 4096
_COUNTED = 20


@dataclass(frozen=True)
class Row:
    """What was measured of one subject with one set of options.

    Attributes:
        name: of the class or function.
        options: it was made with.
        nominal: the order its name or documentation stands for, or None.
        stochastic: does it draw noise?
        evaluations: of the network at 20 steps, or None if it does not run with its defaults.
        cells: convergence on its grids under its schedules; of a stochastic one only on its own grid under the first.
        distances: errors at :data:`BUDGETS` evaluations on its own grid; none for a stochastic one.
    """

    name: str
    options: dict[str, Any]
    nominal: float | None
    stochastic: bool
    evaluations: int | None
    cells: tuple[Cell, ...]
    distances: tuple[Distance, ...]


@dataclass(frozen=True)
class Survey:
    """The whole table.

    Attributes:
        library: what was surveyed.
        command: that makes it.
        rows: see :class:`Row`.
        sweeps: the option space of every class, by name.
        left_out: what was not measured, and why, by name.
        versions: of what was involved.
        seconds: how long it took.
    """

    library: str
    command: str
    rows: tuple[Row, ...]
    sweeps: dict[str, Sweep]
    left_out: dict[str, str]
    versions: dict[str, str]
    seconds: float

    def to_json(self) -> str:
        """Everything, as JSON with one line to a row; numbers to four digits, those that are not finite as null."""
        fields = _rounded(asdict(self))
        lists = {name: fields.pop(name) for name in ("rows", "sweeps")}
        head = json.dumps(fields, indent=1, allow_nan=False)[:-2]
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in lists["rows"])
        sweeps = ",\n".join(
            f"{json.dumps(name)}: {json.dumps(s, allow_nan=False)}" for name, s in lists["sweeps"].items()
        )
        return f'{head},\n "rows": [\n{rows}\n],\n "sweeps": {{\n{sweeps}\n}}}}\n'


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def survey(
    library: str,
    subjects: Iterable[Subject],
    whole_space: Iterable[Subject],
    *,
    command: str,
    options: Callable[[Subject], dict[str, Any]],
    class_name: Callable[[Subject], str],
    left_out: Mapping[str, str] | None = None,
    not_swept: Iterable[str] = (),
    callback: Callable[[str], None] | None = None,
) -> Survey:
    """Measures all.

    Args:
        library: its name as a package, for its version.
        subjects: one for every row.
        whole_space: those whose option space is swept.
        command: that makes this survey, for the record.
        options, class_name: what a subject was made with, and of which class.
        left_out: why others are not here, by name.
        not_swept: schedules to leave out of the sweep.
        callback: told in words what is being done.
    """
    started = time.perf_counter()
    say = callback or (lambda _: None)
    rows, sweeps = [], {}
    for subject in subjects:
        say(f"order of {subject.name} {options(subject) or ''}".rstrip())
        rows.append(_row(subject, class_name(subject), options(subject)))
    for subject in whole_space:
        schedules = {n: s for n, s in (subject.schedules or {}).items() if n not in set(not_swept)}
        name = class_name(subject)

        def count(done: int, total: int, name: str = name) -> None:
            say(f"options of {name}: {done} of {total}")

        sweeps[name] = sweep(subject, schedules, count)
    versions = {library: version(library), "trueward": __version__, "torch": torch.__version__}
    versions["python"] = platform.python_version()
    seconds = time.perf_counter() - started
    return Survey(library, command, tuple(rows), sweeps, dict(left_out or {}), versions, seconds)


def _row(subject: Subject, name: str, options: dict[str, Any]) -> Row:
    schedules: Mapping[str, Schedule] = subject.schedules or {}
    first = next(iter(schedules))
    try:
        noisy = conduct.is_stochastic(conduct.Bench(subject, schedules[first]))
    except Exception:  # its cells will say how it fails
        noisy = False
    grids: list[str | None] = [g if g != subject.own_grid else None for g in subject.grids]
    if None not in grids:
        grids.insert(0, None)
    if noisy:
        law = law_convergence(subject, first, schedules[first], None, LAW_STEPS, subject.claims, _LAW_ROWS)
        return Row(name, options, subject.claims, True, _evaluations(subject, schedules[first]), (law,), ())
    cells = [
        convergence(subject, s, schedules[s], g, _STEPS, subject.claims, extensions=1) for s in schedules for g in grids
    ]
    errors = tuple(distances(subject, s, schedules[s], BUDGETS) for s in schedules)
    return Row(name, options, subject.claims, False, _evaluations(subject, schedules[first]), tuple(cells), errors)


def _evaluations(subject: Subject, schedule: Schedule) -> int | None:
    try:
        return subject.nfe(schedule, _COUNTED, Setting())
    except Exception:
        return None


def survey_of(library: str, callback: Callable[[str], None] | None = None) -> Survey:
    """The survey of a library by its name.

    Raises:
        ValueError: for a library that cannot be surveyed as a whole.
    """
    module, _, function = look_up("library to survey", library, SURVEYS).partition(":")
    made: Survey = getattr(import_module(module), function)(callback)
    return made
