r"""For samplers that draw noise: does the law of their samples converge to the true one?

On the line the Wasserstein-1 distance to a known law is exact, W_1 = mean_i |x_(i) - F^-1((i - 1/2) / n)| over the sorted
samples, so the only error is that of drawing n of them, whose size is found by drawing from the truth itself. The slope of
W_1 over the evaluations is the weak order, measured as far as it stands above that floor. In the plane, mean and covariance
of a correlated mixture are compared, which catches noise that is shared between coordinates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trueward.certification.certificate import FAIL, PASS, SKIPPED, Cell, Finding
from trueward.certification.convergence import TRUTH, _slopes, fitted_order, setting_for
from trueward.certification.subject import Setting, Subject, clean_end, largest_step, same_start
from trueward.certification.witness import Counting
from trueward.noise import Noise
from trueward.schedules import Schedule
from trueward.truth import GaussianMixture

_ROWS = 16_384
# A weak order is measured through sampling noise: it may fall short of the claimed one by this.
_SHORTFALL = 0.4
# On a grid with a larger half-log-SNR step than this, the law need not be near yet.
_LARGEST_STEP = 1.0

PLANE = GaussianMixture(
    [0.4, 0.6], [[-0.7, 0.2], [0.5, -0.3]], [[[0.10, 0.05], [0.05, 0.08]], [[0.06, -0.04], [-0.04, 0.12]]]
)


@functools.lru_cache(maxsize=32)
def _quantiles(schedule: Schedule, end: float, clean: bool, n: int) -> Tensor:
    """F^-1((i - 1/2) / n) of the law at the end, by bisection, (n,)."""
    law = TRUTH if clean else TRUTH.marginal(schedule, end)
    std = law.spectrum.values[:, 0].sqrt()
    p = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    low, high = torch.full_like(p, -50.0), torch.full_like(p, 50.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = (law.weights * torch.special.ndtr((middle[:, None] - law.means[:, 0]) / std)).sum(1) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


@functools.lru_cache(maxsize=8)
def _floor(n: int) -> float:
    """W_1 that n exact samples show, the largest of five draws."""
    generator = torch.Generator().manual_seed(1)
    exact = _quantiles_of_data(n)
    return max((TRUTH.sample(n, generator)[:, 0].sort().values - exact).abs().mean().item() for _ in range(5))


def _quantiles_of_data(n: int) -> Tensor:
    from trueward.schedules import VPLinear

    return _quantiles(VPLinear(), 0.0, True, n)


def law_convergence(
    subject: Subject,
    schedule_name: str,
    schedule: Schedule,
    grid: str | None,
    steps: Sequence[int],
    claims: float | None,
    rows: int = _ROWS,
) -> Cell:
    """Measures the weak order on one grid under one schedule, with `rows` samples."""
    setting = setting_for(grid, subject, schedule)
    label = grid or subject.own_grid
    x_T = Noise.rows(7, rows).normal(0, (1,), torch.float64) * schedule.prior_std().item()
    floor, used = _floor(rows), []
    nfe: list[int] = []
    errors: list[float] = []
    for n in steps:
        model = Counting(TRUTH.denoiser(schedule, covariance="diagonal"))
        try:
            x = subject.run(model, schedule, x_T, n, seed=7, setting=setting).x
        except ValueError as error:
            if subject.is_breakdown(error):
                return _law_cell(schedule_name, label, nfe, errors, None, FAIL, f"the samples became NaN at {n} steps")
            continue
        except Exception as error:
            line = f"raises {type(error).__name__} at {n} steps: {error}"
            return _law_cell(schedule_name, label, nfe, errors, None, FAIL, line)
        levels = subject.levels(schedule, n, setting)
        clean = clean_end(levels)
        end = schedule.t_min if levels is None else float(levels.t[-2 if clean else -1])
        gaps = [
            (x[:, 0].to(torch.float64).sort().values - _quantiles(schedule, end, c, rows)).abs().mean().item()
            for c in ([False, True] if clean is None else [clean])
        ]
        nfe.append(model.calls)
        errors.append(min(gaps))
        used.append(n)
    if not errors:
        return _law_cell(schedule_name, label, nfe, errors, None, SKIPPED, "refused at every number of steps")
    if not all(map(math.isfinite, errors)):
        return _law_cell(schedule_name, label, nfe, errors, None, FAIL, "NaN or infinite samples")
    seen = [i for i, error in enumerate(errors) if error > 3.0 * floor]
    stop = next((i for i, error in enumerate(errors) if error <= 3.0 * floor), len(errors))
    order = fitted_order(nfe[:stop], errors[:stop])
    coarse = largest_step(subject.levels(schedule, used[-1], setting))
    wanted = "" if claims is None else f" (claims {claims:g})"
    final = f"W1 {errors[-1]:.2g} at {nfe[-1]} evaluations (exact samples show {floor:.1g})"
    if order is not None and claims is not None and order < claims - _SHORTFALL and (coarse or 0.0) <= _LARGEST_STEP:
        return _law_cell(schedule_name, label, nfe, errors, order, FAIL, f"weak order {order:.2f}{wanted}; {final}")
    arrived = errors[-1] <= 3.0 * floor
    approaching = order is not None and order >= (0.6 if claims is None else claims - _SHORTFALL)
    if arrived or approaching:
        unseen = "" if claims is None else "weak order hidden by sampling noise; "
        weak = f"weak order {order:.2f}{wanted}; " if order is not None else unseen
        return _law_cell(schedule_name, label, nfe, errors, order, PASS, weak + final)
    if coarse is not None and coarse > _LARGEST_STEP:
        reason = f"not asymptotic: the grid's largest step in half-log-SNR is still {coarse:.2g}; {final}"
        return _law_cell(schedule_name, label, nfe, errors, order, SKIPPED, reason)
    return _law_cell(
        schedule_name, label, nfe, errors, order, FAIL, f"the law stays away: {final}; {len(seen)} runs off"
    )


def _law_cell(
    schedule: str, grid: str, nfe: Sequence[int], errors: Sequence[float], order: float | None, verdict: str, line: str
) -> Cell:
    slopes = tuple(_slopes(nfe, errors))
    return Cell(schedule, grid, "law of the data", tuple(nfe), tuple(errors), slopes, order, verdict, line)


def moments(subject: Subject, schedule: Schedule, steps: int) -> Finding:
    """Mean and covariance in the plane at `steps` steps, against the truth.

    The largest deviation must stay below 0.08: five standard errors, each about 0.01, and 0.03 for the steps being finite.
    """
    setting, rows = Setting("log-snr" if "log-snr" in subject.grids else None), 4_000
    x = subject.run(
        PLANE.denoiser(schedule, covariance="diagonal"),
        schedule,
        same_start(schedule, (2,), rows),
        steps,
        seed=3,
        setting=setting,
    ).x
    x = x.to(torch.float64)
    mean_gap = (x.mean(0) - PLANE.mean).abs().max().item()
    centred = x - PLANE.mean
    covariance = centred.T @ centred / rows
    gap = (covariance - PLANE.covariance).abs().max().item()
    good = mean_gap <= 0.08 and gap <= 0.08
    line = f"in the plane at {steps} steps the mean is off by {mean_gap:.2g} and the covariance by {gap:.2g}"
    return Finding("moments of the law", PASS if good else FAIL, line)
