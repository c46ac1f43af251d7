r"""Does it converge to the exact solution of the probability flow, and how fast?

On a mixture whose flow is known to 1e-12, nine trajectories are followed with doubling numbers of steps. With e_i the largest
error of a run of n_i evaluations, the order between two runs is log(e_i / e_{i+1}) / log(n_{i+1} / n_i); the order reported is
the least-squares slope over the last three runs above the round-off floor. Runs go on doubling while the claimed order is not
seen yet. A grid whose largest step in half-log-SNR is still large on the finest run has not come into its asymptotic range,
where alone an order means something: that is said instead of judging, unless more steps have stopped to help at all. Where
convergence stops, numbers of steps that the subject may treat better are tried too, which tells whether they are the reason.

Samplers that go on to the data (last level sigma = 0) are compared with the flow to the last noisy level followed by the
posterior mean there; of a subject that does not tell its levels, the nearer of the two targets is taken and named.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trueward.certification.certificate import FAIL, PASS, SKIPPED, STOPS, Cell, Distance
from trueward.certification.subject import Setting, Subject, clean_end, largest_step
from trueward.certification.witness import Counting
from trueward.schedules import DiscreteSchedule, Schedule
from trueward.truth import bimodal

TRUTH = bimodal()
# A measured order may fall short of the claimed one by this: what a slope at finite n does (0.95 for order 1, say).
_SHORTFALL = 0.2
# A grid with a larger half-log-SNR step than this on its finest run is not asymptotic for orders 1 and 2. The next
# term of an error h^p grows with p (by Taylor's remainder, roughly as p), so that higher orders need smaller steps.
_LARGEST_STEP = 0.5
# Nor is one whose largest step, above this, shrank on the last doubling by less than this power of the doubling.
_STILL_UNEVEN, _PROPORTION = 0.2, 0.8
_EXTENSIONS = 2


def start_points(schedule: Schedule, start: float | None = None) -> Tensor:
    """Nine states at the start, (9, 1): -2 ... 2 standard deviations of the prior."""
    return torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None] * schedule.prior_std(start).item()


@functools.lru_cache(maxsize=256)
def _flow(schedule: Schedule, start: float, end: float) -> Tensor:
    return TRUTH.flow(start_points(schedule, start), schedule, start, end)


def exact(schedule: Schedule, start: float, end: float, clean: bool) -> Tensor:
    """Where the nine trajectories end: the flow to `end`, then, if `clean`, the posterior mean there."""
    x = _flow(schedule, start, end)
    return TRUTH.posterior_mean(x, schedule, end) if clean else x


def _targets(subject: Subject, schedule: Schedule, steps: int, setting: Setting) -> dict[str, Tensor]:
    """What the samples may be compared with, by name."""
    levels = subject.levels(schedule, steps, setting)
    if levels is None:
        start, end = schedule.t_max, schedule.t_min
        names = {"flow to t_min": False, "posterior mean at t_min": True}
        return {name: exact(schedule, start, end, clean) for name, clean in names.items()}
    clean = bool(clean_end(levels))
    start, end = float(levels.t[0]), float(levels.t[-2 if clean else -1])
    name = f"posterior mean at t={end:.3g}" if clean else f"flow to t={end:.3g}"
    return {name: exact(schedule, start, end, clean)}


def _run(subject: Subject, schedule: Schedule, steps: int, setting: Setting) -> tuple[Tensor, int]:
    """Samples from the nine points and the evaluations spent."""
    model = Counting(TRUTH.denoiser(schedule, covariance="diagonal"))
    levels = subject.levels(schedule, steps, setting)
    x_T = start_points(schedule, None if levels is None else float(levels.t[0]))
    return subject.run(model, schedule, x_T, steps, setting=setting).x, model.calls


def setting_for(
    grid: str | None, subject: Subject, schedule: Schedule, options: Sequence[tuple[str, object]] = ()
) -> Setting:
    """The grid as it is judged: grids that are not even in log-SNR end at sigma / alpha = 0.1, else their last step is huge."""
    name = grid or subject.own_grid
    if name in ("uniform", "quadratic", "even") and "t_end" in subject.sweep():
        end = schedule.time_of_log_snr(-2.0 * math.log(0.1)).item()
        if isinstance(schedule, DiscreteSchedule):
            end = round(end * schedule.nodes) / schedule.nodes
        return Setting(grid, (*options, ("t_end", end)))
    return Setting(grid, tuple(options))


def convergence(
    subject: Subject,
    schedule_name: str,
    schedule: Schedule,
    grid: str | None,
    steps: Sequence[int],
    claims: float | None,
    extensions: int = _EXTENSIONS,
) -> Cell:
    """Measures the order on one grid under one schedule; `extensions` further doublings are made where it is not seen yet."""
    setting = setting_for(grid, subject, schedule)
    label = grid or subject.own_grid
    counts = list(steps)
    nfe: list[int] = []
    errors: list[float] = []
    gaps: dict[str, list[float]] = {}
    largest: list[float | None] = []

    def cell(verdict: str, line: str, order: float | None = None, elsewhere: float | None = None) -> Cell:
        target = min(gaps, key=lambda name: gaps[name][-1]) if gaps else ""
        runs = tuple(nfe), tuple(errors), tuple(_slopes(nfe, errors))
        return Cell(schedule_name, label, target, *runs, order, verdict, line, elsewhere)

    extended = 0
    for n in counts:
        try:
            x, calls = _run(subject, schedule, n, setting)
            targets = _targets(subject, schedule, n, setting)
        except ValueError as error:
            if subject.is_breakdown(error):
                return cell(FAIL, f"the samples became NaN at {n} steps")
            if len(errors) < 3 and n == counts[-1]:
                return cell(SKIPPED, f"refused: {error}")
            continue
        except Exception as error:
            return cell(FAIL, f"raises {type(error).__name__} at {n} steps: {error}")
        if not bool(x.isfinite().all()):
            return cell(FAIL, f"NaN or infinite samples at {n} steps")
        for name, target in targets.items():
            gaps.setdefault(name if len(targets) > 1 else next(iter(gaps), name), []).append(
                (x.to(torch.float64) - target).abs().max().item()
            )
        nfe.append(calls - (1 if clean_end(subject.levels(schedule, n, setting)) else 0))
        errors = gaps[min(gaps, key=lambda name: gaps[name][-1])]
        if n == counts[-1] and extended < extensions and not _settled(nfe, errors, claims, subject.round_off):
            extended += 1
            counts.append(2 * n)
        largest.append(largest_step(subject.levels(schedule, n, setting)))
    if _stalled(nfe, errors, largest, subject.round_off):
        verdict, order = FAIL, fitted_order(nfe, errors, subject.round_off)
        line = _stopped(errors, order, claims)
    else:
        verdict, line, order = _judge(nfe, errors, claims, largest, subject.round_off)
    if not line.startswith(STOPS):
        return cell(verdict, line, order)
    words, elsewhere = _where_it_goes_on(subject, schedule, setting)
    return cell(verdict, line + words, order, elsewhere)


def _where_it_goes_on(subject: Subject, schedule: Schedule, setting: Setting) -> tuple[str, float | None]:
    """What the order is at the numbers of steps that the subject may treat better: in words, and if it has one."""
    better = subject.even_steps(schedule)
    if better is None:
        return "", None
    words, counts = better
    nfe, errors = [], []
    for n in counts:
        try:
            x, calls = _run(subject, schedule, n, setting)
            gaps = [(x - end).abs().max().item() for end in _targets(subject, schedule, n, setting).values()]
        except Exception:  # the cell tells of another failure already
            return "", None
        nfe.append(calls - (1 if clean_end(subject.levels(schedule, n, setting)) else 0))
        errors.append(min(gaps))
    order = fitted_order(nfe, errors, subject.round_off)
    goes_on = order is not None and order >= 0.6 and not _stalled(nfe, errors, [None] * len(errors), subject.round_off)
    found = f"it goes on with order {order:.2f}" if goes_on else "it stops as well"
    told = f"; at {', '.join(map(str, counts))} steps, {words}, {found} (error {errors[-1]:.1e})"
    return told, order if goes_on else None


def _stalled(nfe: Sequence[int], errors: Sequence[float], largest: Sequence[float | None], floor: float) -> bool:
    """Have more steps stopped to help: is the error of the last run no better than that of two runs before?

    An error that rises twice says so on any grid. One that merely stays may be due to a last step that the grid leaves large
    whatever the number of steps, so the largest step must have become smaller by a third.
    """
    if len(errors) < 4 or min(errors[-3:]) < floor:
        return False
    first, second = _slopes(nfe, errors)[-2:]
    if max(first, second) < -0.1 and errors[-1] > 1.2 * min(errors):
        return True
    a, b = largest[-3], largest[-1]
    return max(first, second) < 0.25 and a is not None and b is not None and b < a / 1.5


def _stopped(errors: Sequence[float], order: float | None, claims: float | None) -> str:
    measured = "" if order is None else f", order {order:.2f}"
    wanted = "" if claims is None else f" (claims {claims:g})"
    return f"{STOPS}: error {errors[-2]:.1e} then {errors[-1]:.1e}{measured}{wanted}"


def _slopes(nfe: Sequence[int], errors: Sequence[float]) -> list[float]:
    return [
        math.log(max(a, 1e-300) / max(b, 1e-300)) / math.log(m / n) if m > n > 0 else math.nan
        for a, b, n, m in zip(errors, errors[1:], nfe, nfe[1:])
    ]


def _usable(nfe: Sequence[int], errors: Sequence[float], floor: float) -> tuple[list[int], list[float]]:
    """The runs before the first that reaches the round-off floor."""
    stop = next((i for i, e in enumerate(errors) if e < floor), len(errors))
    return list(nfe[:stop]), list(errors[:stop])


def fitted_order(nfe: Sequence[int], errors: Sequence[float], floor: float = Subject.round_off) -> float | None:
    """Least-squares slope of -log error over log evaluations on the last three runs above the floor."""
    n, e = _usable(nfe, errors, floor)
    if len(n) < 3 or n[-3] < 1:
        return None
    if not n[-3] < n[-2] < n[-1]:
        return 0.0  # more steps were asked for, but no more evaluations spent
    return -float(np.polyfit(np.log(n[-3:]), np.log(e[-3:]), 1)[0])


def _settled(nfe: Sequence[int], errors: Sequence[float], claims: float | None, floor: float) -> bool:
    """Is the claimed order seen (any, if none is claimed), with the last two slopes in agreement?"""
    if errors[-1] < floor:
        return True
    order, slopes = fitted_order(nfe, errors, floor), _slopes(nfe, errors)
    return order is not None and _enough(order, claims) and abs(slopes[-1] - slopes[-2]) < 0.3


def _enough(order: float, claims: float | None) -> bool:
    return order >= (0.8 if claims is None else claims - _SHORTFALL)


def _judge(
    nfe: Sequence[int], errors: Sequence[float], claims: float | None, largest: Sequence[float | None], floor: float
) -> tuple[str, str, float | None]:
    if len(errors) < 3:
        return SKIPPED, "fewer than three of the runs were possible", None
    order, usable = fitted_order(nfe, errors, floor), _usable(nfe, errors, floor)[1]
    if order is None:
        return PASS, f"exact to {errors[-1]:.0e} at {nfe[-1]} evaluations: no slope left to measure", None
    slopes, wanted = _slopes(nfe, errors), "" if claims is None else f" (claims {claims:g})"
    # the fit may still hold a steep slope from before the asymptotic range: the last one must not contradict it
    last = slopes[len(usable) - 2]
    enough = _enough(order, claims) and _enough(last + _SHORTFALL, claims)
    limit, before, coarse = _LARGEST_STEP * 2.0 / max(claims or 2.0, 2.0), largest[-2], largest[-1]
    if coarse is not None and coarse > limit * (2.0 if enough else 1.0):
        line = f"not asymptotic: the grid's largest step in half-log-SNR is still {coarse:.2g}; slope {order:.2f}"
        return SKIPPED, line, order
    if enough:
        return PASS, f"order {order:.2f}{wanted}", order
    if before is not None and coarse is not None and coarse > _STILL_UNEVEN:
        shrank, wanted_by = before / coarse, (nfe[-1] / nfe[-2]) ** _PROPORTION
        if shrank < wanted_by:
            line = f"not asymptotic: the grid's largest step shrank only {shrank:.2f} times, to {coarse:.2g}; slope {order:.2f}"
            return SKIPPED, line, order
    recent = slopes[max(0, len(usable) - 4) : len(usable) - 1]
    rising = len(recent) == 3 and recent[0] + 0.05 < recent[1] and recent[1] + 0.05 < recent[2]
    if claims is not None and rising and recent[-1] >= claims - 0.5:
        shown = ", ".join(f"{s:.2f}" for s in recent)
        return SKIPPED, f"not settled: the slopes still rise ({shown}){wanted}", order
    if usable[-1] > 0.5 * usable[-2]:
        return FAIL, _stopped(usable, order, claims), order
    return FAIL, f"order {order:.2f}{wanted}", order


def adaptive_convergence(subject: Subject, schedule_name: str, schedule: Schedule, tolerances: Sequence[float]) -> Cell:
    """For subjects that choose their steps: is the error bounded by the tolerance asked for?"""
    nfe: list[int] = []
    errors: list[float] = []
    target = ""
    for tolerance in tolerances:
        setting = Setting(None, (("rtol", tolerance), ("atol", tolerance)))
        try:
            x, calls = _run(subject, schedule, 1, setting)
        except Exception as error:
            line = f"raises {type(error).__name__} at tolerance {tolerance:.0e}: {error}"
            return Cell(schedule_name, "adaptive", target, tuple(nfe), tuple(errors), (), None, FAIL, line)
        ((target, end),) = _targets(subject, schedule, 1, setting).items()
        nfe.append(calls)
        errors.append((x - end).abs().max().item())
    # a local tolerance bounds the global error up to a factor of the problem; a hundred is lenient for this one
    kept = all(error <= max(100.0 * tolerance, subject.round_off) for error, tolerance in zip(errors, tolerances))
    shown = ", ".join(f"{e:.0e} at tolerance {t:.0e} ({n} evaluations)" for e, t, n in zip(errors, tolerances, nfe))
    return Cell(
        schedule_name,
        "adaptive",
        target,
        tuple(nfe),
        tuple(errors),
        tuple(_slopes(nfe, errors)),
        None,
        PASS if kept else FAIL,
        f"error {shown}",
    )


def distances(subject: Subject, schedule_name: str, schedule: Schedule, budgets: Sequence[int]) -> Distance:
    """The largest error over the nine trajectories, for budgets of evaluations, on the subject's own grid."""
    setting = Setting()
    nfe: list[int | None] = []
    errors: list[float | None] = []
    for budget in budgets:
        steps = subject.steps_for(budget, setting)
        try:
            if steps is None:
                raise ValueError("cannot spend this little")
            x, calls = _run(subject, schedule, steps, setting)
        except Exception:  # what it is belongs to other lines of the certificate
            nfe.append(None)
            errors.append(None)
            continue
        gaps = [(x - end).abs().max().item() for end in _targets(subject, schedule, steps, setting).values()]
        nfe.append(calls)
        errors.append(min(gaps))
    return Distance(schedule_name, subject.own_grid, tuple(nfe), tuple(errors))
