"""Time grids: end points, spacing, inversion and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueward.schedules import EDM, VE, DiscreteSchedule, VPCosine, VPLinear
from trueward.times import (
    EvenNodes,
    Karras,
    Levels,
    QuadraticTime,
    Times,
    UniformLogSNR,
    UniformTime,
    time_grid,
    time_grid_names,
)

SCHEDULES = [VPLinear(), VPCosine(), VE(), EDM(), DiscreteSchedule.linear(), DiscreteSchedule.cosine()]


@pytest.mark.parametrize("name", time_grid_names())
@pytest.mark.parametrize("s", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_grids_are_strictly_decreasing_with_exact_ends(name, s, steps):
    t = time_grid(name)(s, steps)
    assert t.dtype == np.float64
    assert len(t) == steps + 1
    assert t[0] == s.t_max
    assert t[-1] == s.t_min
    assert (np.diff(t) < 0).all()


@pytest.mark.parametrize("name", time_grid_names())
def test_grids_run_backwards_for_inversion(name):
    s = VPLinear()
    forward, backward = time_grid(name)(s, 10, 1.0, 1e-3), time_grid(name)(s, 10, 1e-3, 1.0)
    assert np.allclose(forward, backward[::-1], rtol=1e-9)


@pytest.mark.parametrize("s", SCHEDULES, ids=lambda s: type(s).__name__)
def test_log_snr_grid_is_uniform_in_log_snr(s):
    log_snr = s.log_snr(torch.as_tensor(UniformLogSNR()(s, 20))).numpy()
    assert np.allclose(np.diff(log_snr), np.diff(log_snr)[0], rtol=1e-9)


def test_karras_grid_is_the_published_formula():
    n, rho = 18, 7.0
    i = np.arange(n)
    expected = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    assert np.allclose(Karras()(EDM(), n - 1), expected, rtol=1e-12)


def test_karras_grid_means_sigma_over_alpha_on_other_schedules():
    s = VPLinear()
    level = torch.exp(-0.5 * s.log_snr(torch.as_tensor(Karras(3.0)(s, 9)))).numpy() ** (1 / 3)
    assert np.allclose(np.diff(level), np.diff(level)[0], rtol=1e-9)


def test_quadratic_grid_is_uniform_in_the_root_of_t():
    root = np.sqrt(QuadraticTime()(VPLinear(), 12))
    assert np.allclose(np.diff(root), np.diff(root)[0])


def test_even_nodes_are_the_even_trajectory_of_analytic_dpm():
    nodes = EvenNodes()(DiscreteSchedule.linear(), 9) * 1000
    assert nodes[::-1].tolist() == [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]
    with pytest.raises(ValueError, match="nodes"):
        EvenNodes()(DiscreteSchedule.linear(10, 0.01, 0.5), 10)


def test_explicit_times_are_used_as_given():
    grid = Times([1.0, 0.3, 0.01])
    assert grid(VPLinear(), 2).tolist() == [1.0, 0.3, 0.01]
    with pytest.raises(ValueError, match="3 times make 2 steps, but 5"):
        grid(VPLinear(), 5)
    with pytest.raises(ValueError, match="strictly decreasing"):
        Times([0.1, 0.3])


def test_levels_may_end_at_the_data():
    levels = Levels.of(VE(), UniformTime()(VE(), 3), clean=True)
    assert (levels.alpha[-1], levels.sigma[-1]) == (1.0, 0.0)
    assert levels.half_log_snr[-1] == np.inf
    assert len(levels) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UniformTime()(VPLinear(), -1), "steps must be a whole number"),
        (lambda: UniformTime()(VPLinear(), 2.5), "steps must be a whole number"),
        (lambda: UniformTime()(VPLinear(), 3, 0.5, 0.5), "must differ"),
        (lambda: UniformTime()(VPLinear(), 3, float("nan")), "finite and not negative"),
        (lambda: UniformTime()(VPLinear(), 3, -0.5), "finite and not negative"),
        (lambda: UniformLogSNR()(VPLinear(), 3, 1.0, 0.0), "log-SNR is not finite"),
        (lambda: Karras(rho=0.0), "rho must be positive"),
        (lambda: time_grid("karass"), "Did you mean 'karras'"),
    ],
)
def test_bad_grids_are_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
