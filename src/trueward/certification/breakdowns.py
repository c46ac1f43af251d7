"""Where, in the whole space of a subject's options, does it give NaN or raise, and what do these places have in common?

Every combination of schedule, grid and options is run at several numbers of steps. The combinations that break in one way are
then described by as few conditions as possible: a condition is a conjunction ``option = value, ...`` of at most five
equations under which *every* combination that runs at all breaks, in this way or another; combinations that are refused at
all numbers of steps neither support nor contradict it. Conditions are taken greedily, the one that explains most first. What
none explains is listed as it is. (Sets of combinations are the bits of an integer, so a conjunction is an ``&``.)
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch

from trueward.certification.safety import TRUTH, verdict_on
from trueward.certification.subject import Setting, Subject, same_start
from trueward.schedules import Schedule

STEPS = (1, 2, 3, 5, 10, 20)
_LONGEST = 5


@dataclass(frozen=True)
class Breakdown:
    """One way to break.

    Attributes:
        what: NaN or infinite samples, or the error raised.
        where: the condition, e.g. {"grid": "karras", "solver_order": 3}; empty if it always breaks.
        steps: the numbers of steps at which at least one combination of the condition broke.
        always: the numbers of steps at which every one did.
        combinations: how many combinations break in this way under the condition.
    """

    what: str
    where: dict[str, Any]
    steps: tuple[int, ...]
    always: tuple[int, ...]
    combinations: int


@dataclass(frozen=True)
class Sweep:
    """All of a subject's option space.

    Attributes:
        combinations: of schedule, grid and options, each run at :data:`STEPS`.
        runs, refused: how many runs there were, and how many ended in a clear refusal.
        broken: how many combinations broke at some number of steps.
        breakdowns: how, by what they have in common.
    """

    combinations: int
    runs: int
    refused: int
    broken: int
    breakdowns: tuple[Breakdown, ...]


def sweep(
    subject: Subject, schedules: Mapping[str, Schedule], callback: Callable[[int, int], None] | None = None
) -> Sweep:
    """Runs all combinations.

    Args:
        subject: what to examine.
        schedules: by name.
        callback: called with (combinations done, combinations in all).
    """
    options = subject.sweep()
    grids: tuple[str | None, ...] = subject.grids or (None,)
    places: list[dict[str, Any]] = []
    failures: dict[str, dict[int, list[int]]] = {}
    refused, never_run = 0, set()
    space = list(itertools.product(schedules, grids, itertools.product(*options.values())))
    for number, (name, grid, values) in enumerate(space):
        chosen = dict(zip(options, values))
        places.append({"schedule": name, **({} if grid is None else {"grid": grid}), **chosen})
        refusals = 0
        for n in STEPS:
            what = _how_it_ends(subject, schedules[name], n, Setting(grid, tuple(chosen.items())))
            if what == "refused":
                refusals += 1
            elif what:
                failures.setdefault(what, {}).setdefault(number, []).append(n)
        refused += refusals
        if refusals == len(STEPS):
            never_run.add(number)
        if callback is not None:
            callback(number + 1, len(space))
    broken = set().union(*failures.values())
    found = [b for what, how in failures.items() for b in conditions(what, places, how, never_run | broken)]
    found.sort(key=lambda b: -b.combinations)
    return Sweep(len(space), len(space) * len(STEPS), refused, len(broken), tuple(found))


def _how_it_ends(subject: Subject, schedule: Schedule, steps: int, setting: Setting) -> str:
    """Nothing if the samples are finite; "refused"; or what went wrong, with numbers taken out of the message."""
    model = TRUTH.denoiser(schedule, covariance="diagonal")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = subject.run(model, schedule, same_start(schedule, (4,), 2, torch.float32), steps, setting=setting).x
    except ValueError as error:
        return "NaN or infinite samples" if subject.is_breakdown(error) else "refused"
    except Exception as error:
        message = re.sub(r"\d+", "N", str(error).split("\n")[0]).strip()
        return f"{type(error).__name__}: {message}" if message else type(error).__name__
    return verdict_on(x)


def conditions(
    what: str, places: list[dict[str, Any]], broken: Mapping[int, list[int]], indifferent: Set[int] = frozenset()
) -> list[Breakdown]:
    """The broken places (by number, with the steps at which they broke) in as few conditions as possible.

    `indifferent` are further places that a condition may cover.
    """
    everything = (1 << len(places)) - 1
    bad = sum(1 << number for number in broken)
    allowed = bad | sum(1 << number for number in indifferent - broken.keys())
    equations: dict[tuple[str, Any], int] = {}
    for number, place in enumerate(places):
        for equation in place.items():
            equations[equation] = equations.get(equation, 0) | 1 << number
    useful = {equation: bits for equation, bits in equations.items() if bits & bad and bits != everything}
    sound: list[tuple[tuple[tuple[str, Any], ...], int]] = []
    for length in range(_LONGEST + 1):
        for chosen in itertools.combinations(useful, length):
            if len({name for name, _ in chosen}) < length:
                continue
            bits = everything
            for equation in chosen:
                bits &= useful[equation]
            if bits & bad and not bits & ~allowed:
                sound.append((chosen, bits & bad))
    found, left = [], bad
    while left:
        # the shortest of those that explain most: `sound` is sorted by length and max keeps the first
        best = max(sound, key=lambda condition: (condition[1] & left).bit_count(), default=None)
        if best is None or not best[1] & left:
            break
        found.append(_breakdown(what, dict(best[0]), best[1], broken))
        left &= ~best[1]
    for number in _numbers(left):
        found.append(_breakdown(what, places[number], 1 << number, broken))
    return found


def _numbers(bits: int) -> list[int]:
    return [number for number in range(bits.bit_length()) if bits >> number & 1]


def _breakdown(what: str, where: dict[str, Any], bits: int, broken: Mapping[int, list[int]]) -> Breakdown:
    steps = [set(broken[number]) for number in _numbers(bits)]
    some, always = set().union(*steps), set.intersection(*steps)
    return Breakdown(what, where, tuple(sorted(some)), tuple(sorted(always)), len(steps))
