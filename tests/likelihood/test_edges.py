"""The table of edge costs agrees with the bound along any trajectory, and its best trajectory is the best."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from covariance.exact import LINEAR, TwoPoints, two_point_gamma
from trueward.covariance import AnalyticCovariance, GammaTable
from trueward.likelihood import DiscretizedGaussian, edge_costs, elbo, optimal_trajectory_of
from trueward.samplers import Ancestral
from trueward.times import Times

NODES = (1, 60, 112, 223, 334, 600, 1000)
TIMES = np.array(NODES) / 1000
DATA = torch.randint(0, 2, (4000, 1), generator=torch.Generator().manual_seed(0)).double() * 2 - 1


def model_of():
    gamma = np.array([two_point_gamma(n) for n in NODES])
    return AnalyticCovariance(TwoPoints(data_range=None), GammaTable.exact(LINEAR, TIMES, gamma, 1 - gamma))


@pytest.mark.parametrize("variance", ["beta", "beta-tilde", "posterior"])
def test_edges_sum_to_the_bound(variance):
    model, decoder = model_of(), DiscretizedGaussian()
    costs = edge_costs(model, DATA, TIMES, variance=variance, decoder=decoder, num_samples=4000, batch_size=4000)
    path = [0, 1, 3, 4, 7]
    total = sum(costs[a, b] for a, b in itertools.pairwise(path))
    grid = Times([TIMES[n - 1] for n in path[:0:-1]])
    bound = elbo(model, DATA, Ancestral(4, variance=variance, grid=grid), decoder=decoder, batch_size=4000)
    assert abs(total - (bound.decoder + bound.edges)) < 6 * bound.total_error  # both have noise of their own


def test_the_table_for_a_covariance_of_the_state_is_that_of_a_number_where_it_is_one():
    class Mapped(AnalyticCovariance):
        def forward(self, x_t, t, **condition):
            p = super().forward(x_t, t, **condition)
            return p.replace(var=torch.full_like(x_t, p.var))

    scalar = model_of()
    mapped = Mapped(scalar.inner, scalar.table)
    a, b = (edge_costs(m, DATA[:500], TIMES, decoder=DiscretizedGaussian(), num_samples=500) for m in (scalar, mapped))
    assert np.allclose(a, b, rtol=1e-9)


def test_the_best_trajectory_of_a_table_is_the_best_by_brute_force():
    costs = edge_costs(model_of(), DATA[:500], TIMES, decoder=DiscretizedGaussian(), num_samples=500)
    found = optimal_trajectory_of(costs, TIMES, 4)
    best = min(
        (sum(costs[a, b] for a, b in itertools.pairwise((0, *middle, 7))), middle)
        for middle in itertools.combinations(range(1, 7), 3)
    )
    assert sorted(found.times) == [TIMES[n - 1] for n in (*best[1], 7)]
    with pytest.raises(ValueError, match=r"2 \.\.\. 7"):
        optimal_trajectory_of(costs, TIMES, 8)
    with pytest.raises(ValueError, match="increasing"):
        edge_costs(model_of(), DATA, [0.5, 0.1])
