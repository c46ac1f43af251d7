"""The whole examination, check by check."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trueward.certification import conduct
from trueward.certification.certificate import FAIL, PASS, SKIPPED, Cell, Certificate, Finding
from trueward.certification.convergence import adaptive_convergence, convergence, distances
from trueward.certification.law import law_convergence, moments
from trueward.certification.safety import nan_safety
from trueward.certification.subject import Subject, subject
from trueward.schedules import EDM, VE, DiscreteSchedule, Schedule, VPCosine, VPLinear
from trueward.times import time_grid_names
from trueward.version import __version__

SCHEDULES: dict[str, Schedule] = {
    "vp-linear": VPLinear(),
    "edm": EDM(),
    "ddpm-linear": DiscreteSchedule.linear(),
    "vp-cosine": VPCosine(),
}
THOROUGH_SCHEDULES: dict[str, Schedule] = {**SCHEDULES, "ve": VE(), "ddpm-cosine": DiscreteSchedule.cosine()}

_BUDGETS = (5, 10, 20, 50)
_STEPS = (20, 40, 80, 160)
_LAW_STEPS = (5, 10, 20, 40, 80)
_TOLERANCES = (1e-2, 1e-4, 1e-6)
_THOROUGH_TOLERANCES = (*_TOLERANCES, 1e-8, 1e-10)


def certify(
    sampler: Any,
    *,
    name: str | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    grids: Sequence[str] | None = None,
    steps: Sequence[int] = _STEPS,
    options: Mapping[str, Any] | None = None,
    claims: float | None = None,
    thorough: bool = False,
) -> Certificate:
    """Examines a sampler on closed-form truth.

    Checked are: the order of convergence to the exact probability flow on every grid under every schedule (for samplers that
    draw noise: of the law of their samples), the number of network evaluations, the error at 5, 10, 20 and 50 of them, NaN
    over the space of options, independence of the batch, of earlier calls and of other threads, seeds, and that inputs,
    global random state, dtype and shapes are respected and no gradient graph is kept.

    Args:
        sampler: a trueward sampler (instance, class or name), "diffusers:SchedulerName", your own function
            ``f(denoiser, schedule, x_T, steps) -> x``, or a :class:`~trueward.certification.Subject`.
        name: what to call it.
        schedules: by name; default: VP linear and cosine, EDM and the linear table of DDPM.
        grids: names of time grids to measure the order on; default: the sampler's own and log-SNR everywhere, all of them
            under the first schedule. A subject that takes no grid is measured on its own.
        steps: numbers of steps of the convergence runs, rising.
        options: of the sampler, for all runs.
        claims: the order it should have; default: what it says itself.
        thorough: more schedules, every grid under each, the whole option space.

    Returns:
        A :class:`~trueward.certification.Certificate`; ``rich.print(certificate.table())`` shows it.

    Raises:
        ValueError: unknown names, or steps that do not rise.

    Example::

        def euler(denoiser, schedule, x_T, steps): ...
        print(certify(euler, claims=1))
    """
    started = time.perf_counter()
    steps = list(steps)
    if len(steps) < 3 or any(a >= b for a, b in itertools.pairwise(steps)) or steps[0] < 1:
        raise ValueError(f"steps must be at least three rising numbers >= 1, got {steps}.")
    what = subject(sampler, name=name, claims=claims, options=options)
    if schedules is None:
        schedules = what.schedules or (THOROUGH_SCHEDULES if thorough else SCHEDULES)
    if not schedules:
        raise ValueError("Give at least one schedule to certify under.")
    for grid in grids or ():
        from trueward.naming import check_name

        check_name("time grid", grid, what.grids or time_grid_names())
    if not what.grids:
        grids = None  # it has only its own
    first, second = next(iter(schedules.values())), list(schedules.values())[-1]
    bench = conduct.Bench(what, first)
    try:
        noisy = conduct.is_stochastic(bench)
    except Exception as error:
        broken = Finding("a first run", FAIL, f"{bench.steps} steps raise {type(error).__name__}: {error}")
        return _certificate(what, [broken], [], [], thorough, started)

    plans = [(s, g) for s in schedules for g in _grids(what, s == next(iter(schedules)), grids, thorough, noisy)]
    if what.adaptive:
        tolerances = _THOROUGH_TOLERANCES if thorough else _TOLERANCES
        cells = [adaptive_convergence(what, s, schedules[s], tolerances) for s in schedules]
    elif noisy:
        cells = [law_convergence(what, s, schedules[s], g, _LAW_STEPS, what.claims) for s, g in plans]
    else:
        cells = [convergence(what, s, schedules[s], g, steps, what.claims) for s, g in plans]
    findings = [_about_convergence(what, cells, noisy)]
    errors = [] if noisy or what.adaptive else [distances(what, s, schedules[s], _BUDGETS) for s in schedules]
    if noisy:
        findings.append(conduct.guarded("moments of the law", lambda: moments(what, first, 100)))
    else:
        findings.append(_about_distances(what, errors))
    nan, nfe = nan_safety(what, schedules, thorough=thorough)
    findings += [nfe, nan]
    findings += [
        conduct.guarded("independence of the batch", lambda: conduct.batch_independence(bench)),
        conduct.guarded("no state between calls", lambda: conduct.statelessness(bench)),
        conduct.guarded("two threads at once", lambda: conduct.thread_safety(bench, second)),
        conduct.guarded("seeds", lambda: conduct.seeds(bench, noisy)),
        conduct.guarded("global random state", lambda: conduct.global_randomness(bench)),
        conduct.guarded("x_T unmodified", lambda: conduct.inputs_unchanged(bench)),
        conduct.guarded("shapes", lambda: conduct.image_shapes(bench)),
        conduct.guarded("float32", lambda: conduct.float32_agreement(bench)),
        conduct.guarded("no gradient graph", lambda: conduct.no_gradient(bench)),
    ]
    return _certificate(what, findings, cells, errors, thorough, started)


def _grids(what: Subject, is_first: bool, asked: Sequence[str] | None, thorough: bool, noisy: bool) -> list[str | None]:
    """The grids to measure under one schedule; None is the subject's own."""
    if asked is not None:
        return list(asked)
    known: list[str | None] = [g for g in what.grids if g != what.own_grid]
    if thorough or (is_first and not noisy):
        return [None, *known]
    return [None, *(g for g in known if g == "log-snr")]


def _about_convergence(what: Subject, cells: Sequence[Cell], noisy: bool) -> Finding:
    check = "convergence"
    bad = [c for c in cells if c.verdict == FAIL]
    good = [c for c in cells if c.verdict == PASS]
    of = "the law of the samples" if noisy else "the exact solution"
    if bad:
        worst = bad[0]
        line = f"{len(bad)} of {len(cells)} combinations of schedule and grid: {worst.line} on {worst.grid} under {worst.schedule}"
        return Finding(check, FAIL, line, [f"{c.schedule}, {c.grid}: {c.line}" for c in cells])
    details = [f"{c.schedule}, {c.grid}: {c.line}" for c in cells]
    if not good:
        return Finding(check, SKIPPED, cells[0].line if cells else "nothing to measure", details)
    if what.adaptive:
        return Finding(check, PASS, f"adaptive: {good[0].line}", details)
    orders = sorted(c.order for c in good if c.order is not None)
    wanted = "" if what.claims is None else f" (claims {what.claims:g})"
    where = f"on {len(good)} of {len(cells)} combinations of schedule and grid"
    rest = "" if len(good) == len(cells) else f", {len(cells) - len(good)} not asymptotic"
    if not orders:
        return Finding(check, PASS, f"{good[0].line} {where}{rest}", details)
    kind = "weak order" if noisy else "order"
    span = f"{orders[len(orders) // 2]:.1f}" + (f" ({orders[0]:.2f} to {orders[-1]:.2f})" if len(orders) > 1 else "")
    return Finding(check, PASS, f"{of} is approached with {kind} {span}{wanted} {where}{rest}", details)


def _about_distances(what: Subject, errors: Sequence[Any]) -> Finding:
    check = "distance at few evaluations"
    if what.adaptive:
        return Finding(check, SKIPPED, "chooses its own number of evaluations")
    first = errors[0]
    pairs = [(n, e) for n, e in zip(first.nfe, first.errors) if e is not None]
    shown = ", ".join(f"{e:.2g} at {n}" for n, e in pairs)
    if not pairs:
        return Finding(check, SKIPPED, "cannot spend a given number of evaluations")
    wrong = [
        d.schedule
        for d in errors
        for known in [[e for e in d.errors if e is not None]]
        if len(known) > 1 and not (np.isfinite(known).all() and (known[-1] < known[0] or known[-1] < 1e-8))
    ]
    if wrong:
        return Finding(
            check, FAIL, f"the error does not fall from {_BUDGETS[0]} to {_BUDGETS[-1]} under {wrong[0]}: {shown}"
        )
    return Finding(check, PASS, f"largest error {shown} evaluations under {first.schedule}")


def _certificate(
    what: Subject,
    findings: Sequence[Finding],
    cells: Sequence[Cell],
    errors: Sequence[Any],
    thorough: bool,
    started: float,
) -> Certificate:
    versions = {"trueward": __version__, "torch": torch.__version__, "python": platform.python_version()}
    seconds = time.perf_counter() - started
    return Certificate(
        what.name, what.claims, tuple(findings), tuple(cells), _BUDGETS, tuple(errors), thorough, seconds, versions
    )
