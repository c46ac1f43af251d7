"""The unbiased MMD against its definition, the closed form between Gaussians and its own spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trueward.metrics import median_bandwidth, mmd, neighbours


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def closed_form(shift: torch.Tensor, s: float, h: float) -> float:
    """MMD^2 between N(shift, s^2 I) and N(0, I)."""
    d = len(shift)

    def mean_kernel(variance: float, gap: float) -> float:
        return (h**2 / (h**2 + variance)) ** (d / 2) * math.exp(-gap / (2 * (h**2 + variance)))

    return mean_kernel(2 * s**2, 0) + mean_kernel(2, 0) - 2 * mean_kernel(1 + s**2, float(shift.square().sum()))


@pytest.mark.parametrize("block", [7, 2**23])
def test_the_value_is_that_of_the_definition_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    x, y = normal(30, 3, 1), normal(41, 3, 2) + 0.5

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * 1.5**2))

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    expected = (xx.sum() - 30) / (30 * 29) + (yy.sum() - 41) / (41 * 40) - 2 * xy.mean()
    assert mmd(x, y, 1.5).value == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(("shift", "s"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1.5)])
def test_the_mean_is_the_closed_form_and_the_standard_error_is_the_spread(shift, s):
    mean = torch.tensor([shift, 0.0, 0.0, 0.0]).double()
    draws = [mmd(normal(100, 4, i) * s + mean, normal(150, 4, 5000 + i), 2.0) for i in range(300)]
    values = np.array([d.value for d in draws])
    errors = np.array([d.standard_error for d in draws])
    spread = values.std(ddof=1)
    # unbiased: 4.5 standard errors of the mean of 300 draws have a false-alarm chance of 7e-6
    assert abs(values.mean() - closed_form(mean, s, 2.0)) < 4.5 * spread / math.sqrt(300)
    # the spread of 300 draws is known to 4 to 6 %; for equal distributions the jackknife without its correction is 41 % too large
    ratio = float(np.mean(errors)) / spread
    assert 0.85 < ratio < (1.32 if (shift, s) == (0.0, 1.0) else 1.2)


def test_the_default_bandwidth_is_the_median_distance():
    x, y = normal(40, 3, 1), normal(50, 3, 2)
    pooled = torch.cat([x, y])
    expected = float(torch.pdist(pooled).median())
    assert median_bandwidth(x, y) == pytest.approx(expected, rel=1e-12)
    assert mmd(x, y).bandwidth == pytest.approx(expected, rel=1e-12)
    assert math.isfinite(median_bandwidth(normal(5000, 2), normal(3000, 2)))


def test_order_of_samples_and_sets_does_not_matter():
    x, y = normal(60, 2, 1), normal(80, 2, 2) * 2
    found, other = mmd(x, y, 1.0), mmd(y, x[torch.randperm(60)], 1.0)
    assert other.value == pytest.approx(found.value, rel=1e-10)
    assert other.standard_error == pytest.approx(found.standard_error, rel=1e-8)


def test_low_precision_and_far_offsets_cost_no_digits():
    x, y = normal(50, 3, 1), normal(50, 3, 2) + 1
    value = mmd(x, y, 1.0).value
    assert mmd(x + 1e6, y + 1e6, 1.0).value == pytest.approx(value, abs=1e-8)
    assert mmd(x.float(), y.float(), 1.0).value == pytest.approx(value, abs=1e-6)
    assert mmd(x.half(), y.half(), 1.0).value == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mmd(normal(3, 2), normal(9, 2)), "at least 4"),
        (lambda: mmd(normal(9, 2), normal(9, 2), 0.0), "bandwidth must be a positive"),
        (lambda: mmd(normal(9, 2), normal(9, 2), float("nan")), "bandwidth must be a positive"),
        (lambda: mmd(torch.zeros(9, 2), torch.zeros(9, 2)), "give a bandwidth"),
        (lambda: mmd(normal(9, 2), normal(9, 3)), "cannot be compared"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
