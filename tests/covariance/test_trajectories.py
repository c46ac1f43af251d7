"""Trajectories: the published node lists, and optimality of the dynamic program."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch

from covariance.exact import LINEAR, mixture_gamma
from trueward.covariance import (
    GammaTable,
    least_cost_paths,
    optimal_levels,
    optimal_trajectory,
    simplified_costs,
    step_costs,
    trajectory,
)
from trueward.covariance.trajectories import bad_tail, even_nodes
from trueward.samplers import Ancestral
from trueward.schedules import EDM, DiscreteSchedule, VPLinear
from trueward.times import EvenNodes


def nodes(times, size=1000):
    return sorted(round(t * size) for t in times.times)


def table_of(schedule, gamma, residual=None):
    times = torch.arange(1, schedule.nodes + 1).double().numpy() / schedule.nodes
    gamma = np.asarray(gamma)
    return GammaTable.exact(schedule, times, gamma, np.maximum(1 - gamma, 0) if residual is None else residual)


def gaussian_gamma(schedule, c2=0.25):
    t = schedule.time_of_node(torch.arange(schedule.nodes))
    alpha2, sigma2 = schedule.alpha(t).numpy() ** 2, schedule.sigma(t).numpy() ** 2
    return sigma2 / (alpha2 * c2 + sigma2)


SMALL = DiscreteSchedule(tuple(np.linspace(1e-3, 0.3, 20)))
N = np.arange(1, 21)
SMALL_GAMMA = gaussian_gamma(SMALL) * (1 - 0.3 * np.exp(-(((N - 8) / 3) ** 2)))


def brute_force(cost, count):
    size = len(cost)
    best = min(
        (sum(cost[a, b] for a, b in itertools.pairwise(path)), path)
        for middle in itertools.combinations(range(1, size - 1), count - 2)
        for path in [(0, *middle, size - 1)]
    )
    return best[0], list(best[1])


@pytest.mark.parametrize("count", [3, 5, 8])
def test_the_program_finds_what_brute_force_finds(count):
    generator = np.random.default_rng(count)
    for cost in (simplified_costs(table_of(SMALL, generator.uniform(0, 1, 20))), generator.normal(size=(20, 20))):
        value, path = brute_force(cost, count)
        paths = least_cost_paths(cost, count)
        assert paths.cost[count - 1, -1] == pytest.approx(value, abs=1e-12)
        assert paths.path(count) == path


def test_a_known_small_program():
    table = table_of(SMALL, SMALL_GAMMA)
    cost = simplified_costs(table)
    for count, path, value in ((5, [1, 2, 18, 19, 20], -4.73319994), (8, [1, 2, 3, 16, 17, 18, 19, 20], -4.72540779)):
        found = [n + 1 for n in optimal_levels(table, [count], "analytic")[count]]
        assert found == path
        assert sum(cost[a - 1, b - 1] for a, b in itertools.pairwise(path)) == pytest.approx(value, abs=1e-8)


def test_a_known_program_on_a_thousand_nodes():
    gamma = np.array([mixture_gamma(n) for n in range(1, 1001)])
    table = table_of(LINEAR, gamma)
    cost = simplified_costs(table)

    def total(path):
        return sum(cost[a - 1, b - 1] for a, b in itertools.pairwise(path))

    found = optimal_levels(table, [5, 10], "analytic")
    known = {5: [1, 46, 75, 112, 1000], 10: [1, 27, 45, 60, 74, 89, 107, 130, 167, 1000]}
    for count, value in ((5, -12.1063971), (10, -12.3297494)):
        path = [n + 1 for n in found[count]]
        assert np.abs(np.array(path) - known[count]).max() <= 1
        assert total(path) == pytest.approx(value, abs=1e-6)
    assert total(even_nodes(1000, 5)) == pytest.approx(-11.0962768, abs=1e-6)
    # the residual cost is the same program for an exact mean, but for what telescopes
    assert optimal_levels(table, [10])[10] == found[10]


def test_every_path_of_a_gaussian_costs_the_same():
    table = table_of(LINEAR, gaussian_gamma(LINEAR))
    cost = simplified_costs(table)
    for path in ([0, 999], [0, 1, 2, 999], [0, 57, 300, 301, 999], list(range(1000))):
        assert sum(cost[a, b] for a, b in itertools.pairwise(path)) == pytest.approx(-11.50357767, abs=1e-7)


def test_both_costs_differ_by_what_telescopes():
    table = table_of(SMALL, SMALL_GAMMA)
    log_snr = SMALL.log_snr(torch.as_tensor(table.times)).numpy()
    s, t = np.triu_indices(20, 1)
    difference = step_costs(table)[s, t] - simplified_costs(table)[s, t]
    assert difference == pytest.approx(log_snr[s] - log_snr[t], rel=1e-9)


def test_the_path_has_exactly_as_many_nodes_as_asked_even_where_fewer_cost_less():
    table = table_of(SMALL, SMALL_GAMMA)
    found = optimal_levels(table, range(2, 21), "analytic")
    assert all(len(path) == count and path[0] == 0 and path[-1] == 19 for count, path in found.items())
    assert found[2] == [0, 19]
    assert found[20] == list(range(20))
    cost = simplified_costs(table)
    totals = [sum(cost[a, b] for a, b in itertools.pairwise(path)) for path in found.values()]
    assert any(later > earlier for earlier, later in itertools.pairwise(totals))


def test_the_program_is_fast():
    table = table_of(LINEAR, gaussian_gamma(LINEAR) * (1 - 0.1 * np.sin(np.arange(1000) / 90) ** 2))
    cpu = time.process_time()
    found = optimal_levels(table, range(2, 101))
    assert time.process_time() - cpu < 1.0  # measured 0.35 s
    assert len(found) == 99


@pytest.mark.parametrize(
    ("size", "first", "levels", "expected"),
    [(20, 19, 8, (16, 7, 1)), (20, None, 8, (20, 8, 0)), (1000, 999, 10, (996, 10 - 1, 1)), (20, 12, 20, (2, 2, 18))],
)
def test_the_rule_for_the_bad_tail(size, first, levels, expected):
    gamma = np.full(size, 0.9)
    if first is not None:
        gamma[first - 1] = 1.01
    assert bad_tail(gamma, levels) == expected


def test_the_bad_tail_is_spaced_evenly_and_ends_at_the_last_node():
    gamma = SMALL_GAMMA.copy()
    gamma[18] = 1.01
    path = [n + 1 for n in optimal_levels(table_of(SMALL, gamma, 1 - SMALL_GAMMA), [8], "analytic")[8]]
    assert path[-1] == 20
    assert path[-2] == 16
    assert path[0] == 1
    assert len(path) == 8
    gamma[13] = 1.01  # fourteen of twenty nodes are bad: two levels leave one for the program
    found = optimal_levels(table_of(SMALL, gamma, 1 - SMALL_GAMMA), [2, 3, 20], "analytic")
    assert found[2] == [0, 19]
    assert found[3] == [0, 5, 19]
    assert found[20] == list(range(20))
    with pytest.raises(ValueError, match="unusable"):
        optimal_levels(table_of(SMALL, np.full(20, 1.5), np.full(20, 0.5)), [5], "analytic")


def test_without_the_rule_edges_where_gamma_is_one_look_free():
    gamma = np.minimum(gaussian_gamma(LINEAR), 1.0)
    gamma[700:] = 1.0
    paths = least_cost_paths(simplified_costs(table_of(LINEAR, gamma)), 6)
    naive = [n + 1 for n in paths.path(6)]
    residual = table_of(LINEAR, gamma, 1 - gaussian_gamma(LINEAR))
    robust = [n + 1 for n in optimal_levels(residual, [6])[6]]
    costs = step_costs(residual, "analytic-residual")

    def true_cost(path):
        return sum(costs[a - 1, b - 1] for a, b in itertools.pairwise(path))

    assert true_cost(robust) <= true_cost(naive) + 1e-9


def test_inconsistent_edges_are_left_out_with_a_warning():
    gamma = SMALL_GAMMA.copy()
    gamma[-1] = 1.2
    with pytest.warns(UserWarning, match="inconsistent"):
        cost = simplified_costs(table_of(SMALL, gamma, 1 - SMALL_GAMMA))
    assert np.isinf(cost[0, -1])


def test_published_node_lists():
    assert nodes(trajectory(LINEAR, 10)) == [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]
    assert nodes(trajectory(LINEAR, 10, "quad")) == [1, 10, 40, 89, 159, 247, 356, 484, 633, 801]
    with pytest.warns(UserWarning, match="starts at node 17 of 20"):
        trajectory(SMALL, 4, "quad")
    assert nodes(trajectory(LINEAR, 10, "power")) == [1, 58, 119, 184, 255, 334, 423, 529, 667, 1000]
    assert nodes(trajectory(LINEAR, 10, "even-ddim")) == list(range(1, 1001, 100))


@pytest.mark.parametrize("schedule", [LINEAR, SMALL, DiscreteSchedule.cosine(997)], ids=["linear", "small", "cosine"])
@pytest.mark.filterwarnings("ignore:The even trajectory starts")
def test_the_even_grid_of_samplers_is_the_published_one_up_to_ties(schedule):
    size = schedule.nodes
    for levels in range(2, min(size, 150)):
        ours = nodes(trajectory(schedule, levels), size)
        grid = sorted(np.round(EvenNodes()(schedule, levels - 1) * size).astype(int))
        assert np.abs(np.array(ours) - grid).max() <= 1
        assert len(set(ours)) == levels


def test_a_trajectory_is_the_grid_of_a_sampler():
    times = trajectory(LINEAR, 7, "power")
    sampler = Ancestral(7, grid=times)
    assert sampler.levels(LINEAR).t[:-1].tolist() == list(times.times)
    assert sampler.nfe(LINEAR) == 7


@pytest.mark.parametrize("schedule", [VPLinear(), EDM()], ids=lambda s: type(s).__name__)
def test_continuous_time_uses_the_grid_of_the_table(schedule):
    t = schedule.time_of_log_snr(torch.linspace(8, -6, 60, dtype=torch.float64)).numpy()
    alpha2, sigma2 = (f(torch.as_tensor(t)).numpy() ** 2 for f in (schedule.alpha, schedule.sigma))
    gamma = sigma2 / (alpha2 * 0.25 + sigma2) * (1 - 0.2 * np.exp(-((np.arange(60) - 30) ** 2) / 50))
    table = GammaTable.exact(schedule, t, gamma, 1 - gamma)
    times = optimal_trajectory(table, 6).times
    assert len(times) == 6
    assert times[0] == t[-1]
    assert times[-1] == t[0]
    cost = step_costs(table, "analytic-residual")
    value, path = brute_force(cost[:12, :12], 5)
    assert least_cost_paths(cost[:12, :12], 5).path(5) == path
    assert value == pytest.approx(least_cost_paths(cost[:12, :12], 5).cost[4, -1])


def test_bad_calls_are_told_in_one_sentence():
    table = table_of(SMALL, SMALL_GAMMA)
    for call, words in (
        (lambda: trajectory(LINEAR, 1), "2 ... 1000"),
        (lambda: trajectory(LINEAR, 1001), "2 ... 1000"),
        (lambda: trajectory(LINEAR, 10, "evn"), "Did you mean 'even'"),
        (lambda: trajectory(LINEAR, 10, "optimal"), "needs the table"),
        (lambda: trajectory(LINEAR, 10, "optimal", table), "measured under"),
        (lambda: trajectory(LINEAR, 7, "even-ddim"), "choose a divisor"),
        (lambda: trajectory(EDM(), 7), "DiscreteSchedule"),
        (lambda: optimal_levels(table, [21]), "2 ... 20"),
        (lambda: step_costs(table, eta=0.0), "infinite"),
        (lambda: least_cost_paths(np.zeros((3, 4)), 2), "square"),
        (lambda: least_cost_paths(np.full((3, 3), np.nan), 2), "NaN"),
        (lambda: least_cost_paths(np.full((3, 3), np.inf), 2).path(2), "no path"),
    ):
        with pytest.raises(ValueError, match=words.replace(".", r"\.")):
            call()
