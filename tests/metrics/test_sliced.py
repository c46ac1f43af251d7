"""The sliced Wasserstein distance against scipy in one dimension and closed forms in several."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from trueward.metrics import interval, sliced_wasserstein, wasserstein_1d
from trueward.metrics.sliced import sliced_with_error


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (7, 12), (12, 5), (100, 150), (3, 1000)])
def test_one_dimension_agrees_with_scipy_for_any_sizes(n, m):
    x, y = normal(n, 3, 1), normal(m, 3, 2) * 2 + 1
    found = wasserstein_1d(x, y, p=1.0)
    for column in range(3):
        assert float(found[column]) == pytest.approx(wasserstein_distance(x[:, column], y[:, column]), rel=1e-10)


def test_repeating_the_points_of_one_set_changes_nothing():
    x, y = normal(20, 2, 1), normal(30, 2, 2)
    once = wasserstein_1d(x, y, p=2.0)
    assert torch.allclose(wasserstein_1d(x.repeat(6, 1), y.repeat(4, 1), p=2.0), once, rtol=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_a_shift_in_one_dimension_is_its_distance(p):
    x = normal(50, 1)
    assert sliced_wasserstein(x, x + 3, p=p) == pytest.approx(3.0, rel=1e-12)


def test_a_shift_in_d_dimensions_is_its_length_over_root_d():
    # E (theta . delta)^2 = |delta|^2 / d; of 20000 directions the mean is known to 1 %
    x, delta = normal(20, 5), torch.tensor([1.0, -2.0, 0.0, 2.0, 4.0]).double()
    assert sliced_wasserstein(x + delta, x, 20000) == pytest.approx(5 / math.sqrt(5), rel=0.02)


def test_scaled_gaussians_have_their_closed_form():
    # the same points, scaled by 3: every projection has W_2^2 = 4 E (theta . x)^2, on average 4 E |x|^2 / d
    x = normal(500, 4)
    expected = math.sqrt(4 * float(x.square().sum(1).mean()) / 4)
    assert sliced_wasserstein(3 * x, x, 5000) == pytest.approx(expected, rel=0.02)


def test_directions_depend_on_the_seed_alone():
    x, y = normal(50, 3, 1), normal(60, 3, 2)
    torch.manual_seed(1)
    first = sliced_wasserstein(x, y, 50)
    torch.manual_seed(2)
    assert sliced_wasserstein(x, y, 50) == first
    assert sliced_wasserstein(x, y, 50, seed=1) != first
    assert sliced_wasserstein(y, x, 50) == pytest.approx(first, rel=1e-12)


def test_the_quick_jackknife_is_the_general_one():
    x, y = normal(100, 3, 1), normal(130, 3, 2) + 0.2
    quick, general = sliced_with_error(x, y, 16), interval(sliced_wasserstein, x, y, projections=16)
    assert quick.value == pytest.approx(general.value, rel=1e-12)
    assert quick.standard_error == pytest.approx(general.standard_error, rel=1e-9)


def test_the_jackknife_error_covers_the_spread():
    draws = [sliced_with_error(normal(100, 3, i), normal(150, 3, 999 + i) + 0.7, 16) for i in range(80)]
    spread = np.std([d.value for d in draws], ddof=1)
    # 80 draws know the spread to 8 %, and the jackknife of a nearly linear statistic is right to a few per cent
    assert np.mean([d.standard_error for d in draws]) == pytest.approx(spread, rel=0.35)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"projections": 0}, "projections"), ({"p": 0.5}, "p must be"), ({"p": float("inf")}, "p must be")],
)
def test_a_wrong_call_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(normal(9, 2), normal(9, 2), **options)
