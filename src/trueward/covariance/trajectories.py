r"""Which levels to visit: handcrafted trajectories, and the optimal one by dynamic programming.

With the optimal variance the divergence of the sampled joint law from the true one is, up to terms that all trajectories with
the same ends share, a sum over the steps (Bao et al. 2022, Theorem 3; Watson et al. 2021 for the dynamic program)

    (d / 2) sum_k J(tau_{k-1}, tau_k),      J(s, t) = log(sigma*^2 / lambda^2) = log(1 + kappa^2 C(t) / lambda^2),   eta = 1,

or, dropping what telescopes, J(s, t) = log(1 - (1 - SNR_t / SNR_s) gamma(t)). The least-cost path with exactly K levels is

    C[1, first] = 0,     C[k, n] = min_{s < n} C[k-1, s] + J(s, n).

An estimated gamma exceeds 1 at high noise sooner or later; edges there look free although their variance is clipped and the
bound explodes. The official remedy, kept here, takes twice that tail out of the program and spaces it evenly. The cost from
the residual, C(t) = (sigma_t / alpha_t)^2 E ||eps - eps_theta||^2 / d, never does that and needs no remedy.

Trajectories come as :class:`~trueward.times.Times`, noisiest first, for the `grid` of a sampler with as many steps as levels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trueward.covariance.analytic import SCALAR_KINDS, GammaTable, Range
from trueward.naming import check_name
from trueward.samplers.reverse_step import ReverseSteps
from trueward.schedules import DiscreteSchedule, Schedule
from trueward.times import Levels, TimeGrid, Times

KINDS = ("even", "even-ddim", "quad", "power", "optimal", "optimal-residual")


# --- the dynamic program ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LeastCostPaths:
    """All least-cost paths from node 0 with 1 ... K nodes to every end.

    Attributes:
        cost: (K, N), cost of the best path with k + 1 nodes that ends in n; inf where there is none.
        before: (K, N), the node before n on it.
    """

    cost: np.ndarray
    before: np.ndarray

    def path(self, nodes: int, end: int = -1) -> list[int]:
        """The best path with exactly `nodes` nodes from node 0 to `end`.

        Raises:
            ValueError: if there is no such path of finite cost.
        """
        end = end % self.cost.shape[1]
        if not 1 <= nodes <= len(self.cost) or not np.isfinite(self.cost[nodes - 1, end]):
            raise ValueError(f"There is no path of {nodes} nodes and finite cost to node {end}.")
        found = [end]
        for k in range(nodes - 1, 0, -1):
            found.append(int(self.before[k, found[-1]]))
        return found[::-1]


def least_cost_paths(cost: np.ndarray, nodes: int) -> LeastCostPaths:
    """Runs the program for up to `nodes` nodes: O(nodes N^2) time, vectorised.

    Args:
        cost: (N, N), cost of the edge s -> t in row s and column t; only s < t is used.
        nodes: K.

    Raises:
        ValueError: a matrix that is not square or holds NaN, or fewer than one node.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost must be square, got shape {cost.shape}.")
    size = cost.shape[0]
    if not 1 <= nodes <= size:
        raise ValueError(f"nodes must lie in 1 ... {size}, got {nodes}.")
    arriving = np.where(np.tri(size, k=-1, dtype=bool), cost.T, np.inf)  # row t, column s
    if bool(np.isnan(arriving).any()):
        raise ValueError("cost holds NaN.")
    best, before = np.full((nodes, size), np.inf), np.zeros((nodes, size), dtype=np.int32)
    best[0, 0] = 0.0
    total, every = np.empty_like(arriving), np.arange(size)
    for k in range(1, nodes):
        np.add(arriving, best[k - 1], out=total)
        before[k] = total.argmin(1)
        best[k] = total[every, before[k]]
    return LeastCostPaths(best, before)


# --- costs --------------------------------------------------------------------------------------------------------------


def step_costs(table: GammaTable, kind: str = "analytic", data_range: Range = None, eta: float = 1.0) -> np.ndarray:
    """J(s, t) = log(sigma*^2 / lambda^2) between all levels of a table, (T, T), inf unless s < t.

    Args:
        table: what was measured.
        kind: analytic or analytic-residual, see :mod:`trueward.covariance.analytic`.
        data_range: clips C(t), None for unbounded data.
        eta: must be positive: without noise the divergence is infinite.

    Raises:
        ValueError: eta = 0.
    """
    if not 0.0 < eta <= 1.0:
        raise ValueError(f"The cost of a step needs eta in (0, 1], got {eta}: at eta=0 the divergence is infinite.")
    step = _all_steps(table, eta)
    variance = table.variance(table.times, kind, data_range)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.log1p(step.kappa**2 * variance / step.lambda2)
    return _forward_only(cost)


def simplified_costs(table: GammaTable) -> np.ndarray:
    """J(s, t) = log(1 - (1 - SNR_t / SNR_s) gamma(t)), eta = 1: differs from :func:`step_costs` by what telescopes.

    Edges for which an inconsistent gamma gives no logarithm cost infinity, with a warning.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.log1p(-_all_steps(table, 1.0).lost * table.gamma)
    lost = np.tri(len(table), k=-1, dtype=bool).T & ~np.isfinite(cost)
    if lost.any():
        warnings.warn(
            f"gamma is inconsistent on {int(lost.sum())} edges; they are left out of the trajectory.", stacklevel=2
        )
    return _forward_only(np.where(np.isfinite(cost), cost, np.inf))


def _all_steps(table: GammaTable, eta: float) -> ReverseSteps:
    levels = Levels.of(table.schedule, table.times)
    alpha, sigma = levels.alpha, levels.sigma
    return ReverseSteps(alpha[:, None], sigma[:, None], alpha[None, :], sigma[None, :], eta)


def _forward_only(cost: np.ndarray) -> np.ndarray:
    return np.where(np.tri(len(cost), k=-1, dtype=bool).T, cost, np.inf)


# --- optimal trajectories -----------------------------------------------------------------------------------------------


def bad_tail(gamma: np.ndarray, levels: int) -> tuple[int, int, int]:
    """How the official rule divides `levels` levels: (N1, K1, K2), K1 of them by the program on the first N1 levels of the
    table, K2 spread evenly over the rest. Without any gamma > 1, that is (N, K, 0).

    Raises:
        ValueError: if gamma exceeds 1 so early that nothing is left.
    """
    size = len(gamma)
    above = np.flatnonzero(gamma > 1.0)
    bad = 2 * (size - int(above[0])) if len(above) else 0
    kept = size - bad
    if kept < 1:
        raise ValueError(f"gamma exceeds 1 from level {int(above[0]) + 1} of {size} on: this table is unusable.")
    first = math.ceil((1.0 - 0.8 * bad / size) * levels)
    rest = levels - first
    if first > kept:
        first, rest = kept, levels - kept
    if rest > bad:
        first, rest = levels - bad, bad
    if bad > 0 and rest == 0:
        first, rest = levels - 1, 1
    return kept, first, rest


def optimal_levels(
    table: GammaTable, counts: Iterable[int], kind: str = "analytic-residual", data_range: Range = None
) -> dict[int, list[int]]:
    """The optimal trajectories with K levels for every K in `counts`, as indices into ``table.times``, increasing.

    One program serves all K. Both ends of the table are always visited.

    Args:
        table: what was measured, at all nodes of a discrete schedule or on a grid of a continuous one.
        counts: numbers of levels, 2 <= K <= T (K = 1 only for a table of one level).
        kind: analytic-residual (the better one) or analytic (the paper's, with the rule for its bad tail).
        data_range: bounds of the data, None for unbounded.
    """
    check_name("covariance", kind, SCALAR_KINDS)
    counts, size = sorted(set(counts)), len(table)
    for count in counts:
        if not (2 <= count <= size or count == size == 1):
            raise ValueError(f"A trajectory has 2 ... {size} levels here, got {count}.")
    if kind == "analytic-residual":
        paths = least_cost_paths(step_costs(table, kind, data_range), max(counts))
        return {count: paths.path(count) for count in counts}
    shares = {count: bad_tail(table.gamma, count) for count in counts}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inconsistent edges lie in the tail, which the rule keeps out of the program
        cost = simplified_costs(table)
    paths = least_cost_paths(cost, max(first for _, first, _ in shares.values()))
    found = {}
    for count, (kept, first, rest) in shares.items():
        head = list(range(kept)) if first == kept else [0] if first == 1 else paths.path(first, kept - 1)
        tail = [round(size - k * (size - kept) / rest) - 1 for k in range(rest - 1, -1, -1)]
        found[count] = head + tail
    return found


def optimal_trajectory(
    table: GammaTable, levels: int, kind: str = "analytic-residual", data_range: Range = None
) -> Times:
    """The trajectory of exactly `levels` levels with the least bound (eta = 1), as a time grid; see :func:`optimal_levels`."""
    return _as_times(table.times[optimal_levels(table, [levels], kind, data_range)[levels]])


def _as_times(increasing: np.ndarray) -> Times:
    return Times(np.asarray(increasing, dtype=np.float64)[::-1].tolist())


# --- handcrafted trajectories -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PowerNodes(TimeGrid):
    """Nodes of a table denser near the data: x = 1 - (1 - k / (K-1))^(1/p) backwards, rounded, each used once."""

    power: float = 2.0
    citation: ClassVar[tuple[str, ...]] = ("bao2022analytic",)

    def place(self, schedule: Schedule, steps: int, start: float, end: float) -> np.ndarray:
        nodes = schedule.nodes if isinstance(schedule, DiscreteSchedule) else 1000
        low, high = round(end * nodes), round(start * nodes)
        if steps > high - low:
            raise ValueError(f"{steps} steps need {steps + 1} nodes, but there are {high - low + 1} between the times.")
        share = 1.0 - (1.0 - np.arange(steps + 1) / steps) ** (1.0 / self.power)
        found = np.round((high - low) * share + low).astype(int)
        for k in range(1, len(found)):
            found[k] = max(found[k], found[k - 1] + 1)
        return found[::-1] / nodes


def even_nodes(size: int, levels: int) -> list[int]:
    """1 = tau_1 < ... < tau_K = N, evenly spread, rounded half to even from an accumulated sum (as the official code does)."""
    if not 2 <= levels <= size:
        raise ValueError(f"An even trajectory has 2 ... {size} levels, got {levels}.")
    stride, at, found = (size - 1) / (levels - 1), 1.0, []
    for _ in range(levels):
        found.append(round(at))
        at += stride
    return found


def trajectory(
    schedule: DiscreteSchedule, levels: int, kind: str = "even", table: GammaTable | None = None, power: float = 2.0
) -> Times:
    """A trajectory of exactly `levels` nodes of a discrete schedule, as a time grid.

    Args:
        schedule: the table; node number n = 1 ... N has the time n / N.
        levels: K.
        kind: even; even-ddim (stride N // K from node 1); quad (squares up to 0.8 N); power; optimal (the paper's, from
            gamma); optimal-residual (from the residual, better).
        table: what was measured of the model; for the optimal kinds.
        power: exponent of the power trajectory.

    Raises:
        ValueError: an unknown kind, a number of levels that the kind cannot give, or no table for an optimal one.
    """
    check_name("trajectory", kind, KINDS)
    if not isinstance(schedule, DiscreteSchedule):
        raise ValueError(
            f"trajectory needs a DiscreteSchedule, got {type(schedule).__name__}; use a time grid instead."
        )
    size = schedule.nodes
    if kind.startswith("optimal"):
        if table is None:
            raise ValueError(f"kind={kind!r} needs the table that `trueward fit-covariance` measures.")
        table.check(schedule)
        return optimal_trajectory(table, levels, "analytic" if kind == "optimal" else "analytic-residual")
    if not 2 <= levels <= size:
        raise ValueError(f"A trajectory of this schedule has 2 ... {size} levels, got {levels}.")
    if kind == "even":
        nodes = even_nodes(size, levels)
    elif kind == "power":
        return _as_times(PowerNodes(power)(schedule, levels - 1)[::-1])
    elif kind == "even-ddim":
        nodes = list(range(1, size + 1, size // levels))
        if len(nodes) != levels:
            raise ValueError(
                f"even-ddim gives {len(nodes)} levels for {levels} of {size} nodes; choose a divisor of {size}."
            )
    else:
        nodes = [int(v) + 1 for v in np.linspace(0.0, math.sqrt(0.8 * size), levels) ** 2]
    if schedule.alpha(nodes[-1] / size).item() ** 2 > 0.01:
        warnings.warn(
            f"The {kind} trajectory starts at node {nodes[-1]} of {size}, where the data are not yet lost in the noise; "
            "sampling starts from pure noise all the same.",
            stacklevel=2,
        )
    return _as_times(np.array(nodes) / size)
