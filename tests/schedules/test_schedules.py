"""Schedules against numerical derivatives, published values and their own inverse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueward.schedules import (
    EDM,
    VE,
    DiscreteSchedule,
    FlowMatching,
    Schedule,
    VPCosine,
    VPLinear,
    schedule,
    schedule_names,
)

CONTINUOUS = [
    VPLinear(),
    VPLinear(beta_min=0.05, beta_max=12.0),
    VPCosine(),
    VE(),
    EDM(),
    EDM(0.01, 50.0),
    FlowMatching(),
]
DISCRETE = [
    DiscreteSchedule.linear(),
    DiscreteSchedule.cosine(),
    DiscreteSchedule.scaled_linear(),
    DiscreteSchedule.linear(10, 0.01, 0.5),
]
ALL = CONTINUOUS + DISCRETE
names = [f"{type(s).__name__}{i}" for i, s in enumerate(ALL)]


def half(s: Schedule, t: float) -> float:
    return 0.5 * s.log_snr(t).item()


@pytest.mark.parametrize("s", ALL, ids=names)
def test_time_of_log_snr_is_the_inverse(s):
    t = torch.linspace(s.t_min, s.t_max, 1001, dtype=torch.float64)
    assert torch.allclose(s.time_of_log_snr(s.log_snr(t)), t, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("s", CONTINUOUS, ids=names[: len(CONTINUOUS)])
def test_drift_and_diffusion_are_the_derivatives_of_alpha_and_sigma(s):
    t = torch.linspace(s.t_min, s.t_max, 33, dtype=torch.float64)[1:-1]
    h = 1e-6 * t
    f = (s.log_alpha(t + h) - s.log_alpha(t - h)) / (2 * h)
    g2 = (s.sigma(t + h) ** 2 - s.sigma(t - h) ** 2) / (2 * h) - 2 * f * s.sigma(t) ** 2
    assert torch.allclose(s.drift(t), f, rtol=1e-7, atol=1e-9)
    assert torch.allclose(s.diffusion(t) ** 2, g2, rtol=1e-7)


@pytest.mark.parametrize("s", DISCRETE, ids=names[len(CONTINUOUS) :])
def test_discrete_drift_is_the_slope_between_nodes_and_the_process_preserves_variance(s):
    t = (torch.arange(1, s.nodes, dtype=torch.float64) + 0.5) / s.nodes
    h = 1e-3 / s.nodes
    assert torch.allclose(s.drift(t), (s.log_alpha(t + h) - s.log_alpha(t - h)) / (2 * h), rtol=1e-8)
    assert torch.allclose(s.alpha(t) ** 2 + s.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14)


@pytest.mark.parametrize("s", ALL, ids=names)
def test_alpha_sigma_and_log_snr_agree(s):
    t = torch.linspace(s.t_min, s.t_max, 101, dtype=torch.float64)
    assert torch.allclose(torch.exp(s.log_snr(t)), (s.alpha(t) / s.sigma(t)) ** 2, rtol=1e-10)
    assert (s.log_snr(t).diff() < 0).all()


def test_vp_linear_has_the_values_of_the_dpm_solver_paper():
    s = VPLinear()
    assert half(s, 1.0) == pytest.approx(-5.024978406659, abs=1e-9)
    assert half(s, 1e-3) == pytest.approx(4.557714932730, abs=1e-9)
    assert half(s, 1e-4) == pytest.approx(5.751509795269, abs=1e-9)
    assert s.alpha(1.0).item() == pytest.approx(0.006571586495, abs=1e-12)
    assert s.sigma(1e-3).item() == pytest.approx(0.010485416335, abs=1e-12)


def test_vp_cosine_is_cut_where_half_the_log_snr_is_minus_4_78():
    assert half(VPCosine(), 0.9946) == pytest.approx(-4.7776, abs=1e-4)


@pytest.mark.parametrize("t", [1e-4, 1e-3, 0.1, 0.5, 1.0])
def test_vp_linear_inverse_is_good_to_twelve_digits(t):
    s = VPLinear(t_min=1e-5)
    assert s.time_of_log_snr(s.log_snr(t)).item() == pytest.approx(t, rel=1e-12)


def test_discrete_linear_has_the_published_log_snrs():
    s = DiscreteSchedule.linear()
    assert s.nodes == 1000
    assert half(s, 1 / 1000) == pytest.approx(4.60512018, abs=1e-8)
    assert half(s, 1.0) == pytest.approx(-5.05883659, abs=1e-8)
    assert half(s, 0.5) == pytest.approx(-1.23084936, abs=1e-8)
    assert s.label(1.0).item() == pytest.approx(999.0)


def test_discrete_cosine_drops_the_nodes_no_sampler_can_use():
    s = DiscreteSchedule.cosine()
    assert s.nodes == 996
    assert half(s, 1.0) == pytest.approx(-5.07775572, abs=1e-8)
    assert half(s, 0.5) == pytest.approx(-0.00607889, abs=1e-8)
    assert s.label(1.0).item() == pytest.approx(995.0)  # the label that was trained; 998.996 is the reference code's
    assert DiscreteSchedule.cosine(label_mapping="reference").label(1.0).item() == pytest.approx(998.996, abs=1e-3)
    long = DiscreteSchedule.cosine(4000, label_scale=1000)
    assert long.nodes == 3984
    assert long.label(1.0).item() == pytest.approx(995.75)


def test_discrete_schedule_is_exact_at_its_nodes():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    s = DiscreteSchedule(tuple(betas.tolist()))
    product = torch.cumprod(1 - betas, 0)
    t = s.time_of_node(torch.arange(1000))
    assert torch.allclose(s.alpha(t) ** 2, product, rtol=1e-13)
    assert torch.equal(s.label(t).round(), torch.arange(1000, dtype=torch.float64))


def test_discrete_schedule_is_linear_in_log_alpha_between_nodes():
    s = DiscreteSchedule.linear(100, 1e-3, 0.1)
    t = torch.tensor([0.305], dtype=torch.float64)
    mean = 0.5 * (s.log_alpha(0.30) + s.log_alpha(0.31))
    assert s.log_alpha(t).item() == pytest.approx(mean.item(), rel=1e-12)


def test_times_before_the_first_node_are_refused():
    with pytest.raises(ValueError, match="before the first node"):
        DiscreteSchedule.linear().alpha(5e-4)


def test_zero_terminal_snr_table_loses_its_last_node():
    product = torch.linspace(0.99, 0.0, 50, dtype=torch.float64)
    s = DiscreteSchedule.from_alphas_cumprod(product)
    assert s.nodes == 49
    assert s.alpha(1.0).item() == pytest.approx(math.sqrt(product[48].item()), rel=1e-12)


@pytest.mark.parametrize("s", ALL, ids=names)
def test_config_round_trip_gives_an_equal_schedule(s):
    other = Schedule.from_config(s.to_config())
    assert other == s
    assert hash(other) == hash(s)
    assert other.fingerprint == s.fingerprint


def test_fingerprints_tell_schedules_apart():
    assert len({s.fingerprint for s in ALL}) == len(ALL)


@pytest.mark.parametrize("name", schedule_names())
def test_every_named_schedule_can_be_made(name):
    s = schedule(name)
    s.validate()
    assert s.log_snr(s.t_max) < 0 < s.log_snr(s.t_min)


def test_prior_std_is_one_for_variance_preserving_and_sigma_for_exploding():
    assert VPLinear().prior_std().item() == 1.0
    assert DiscreteSchedule.cosine().prior_std(0.5).item() == 1.0
    assert EDM().prior_std().item() == pytest.approx(80.0)
    assert VE().prior_std(0.0).item() == pytest.approx(0.01)


@given(t=st.floats(1e-6, 1.0), b0=st.floats(0.01, 1.0), b1=st.floats(1.5, 30.0))
@settings(max_examples=50, deadline=None)
def test_vp_linear_inverse_holds_for_any_betas(t, b0, b1):
    s = VPLinear(b0, b1)
    assert s.time_of_log_snr(s.log_snr(t)).item() == pytest.approx(t, rel=1e-9)


def test_coefficients_broadcast_per_row_and_keep_the_dtype_of_the_data():
    x = torch.zeros(3, 2, 4, 4)
    alpha, sigma = VPLinear().coefficients(torch.tensor([0.1, 0.5, 0.9]), x)
    assert alpha.shape == sigma.shape == (3, 1, 1, 1)
    assert alpha.dtype == torch.float32
    assert isinstance(VPLinear().coefficients(0.5, x)[0], float)


def test_add_noise_has_the_forward_law():
    x, noise = torch.ones(2, 3), torch.full((2, 3), 2.0)
    s = VE()
    t = torch.tensor([0.0, 1.0])
    assert torch.allclose(s.add_noise(x, t, noise), torch.tensor([[1.02] * 3, [101.0] * 3]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDM(sigma_min=-1.0), "sigma_min > 0, got -1"),
        (lambda: VE(sigma_max=float("nan")), "sigma_max > 0, got nan"),
        (lambda: EDM(sigma_min=3.0, sigma_max=2.0), "t_min < t_max"),
        (lambda: VPLinear(t_min=0.5, t_max=0.4), "t_min < t_max"),
        (lambda: VPCosine(t_max=1.2), "non-finite or zero|must fall"),
        (lambda: DiscreteSchedule((0.1, 1.5)), r"beta\[1\] is 1.5"),
        (lambda: DiscreteSchedule((0.1, float("nan"))), r"beta\[1\] is nan"),
        (lambda: DiscreteSchedule((0.1,)), "at least two betas"),
        (lambda: DiscreteSchedule((0.1, 0.2), label_mapping="exakt"), "Did you mean 'exact'"),
        (lambda: DiscreteSchedule.from_alphas_cumprod([0.9, 1.2]), "alphas_cumprod must be"),
        (lambda: schedule("vp-liner"), "Did you mean 'vp-linear'"),
        (lambda: Schedule.from_config({"schedule": "VPLinaer"}), "Did you mean 'VPLinear'"),
        (lambda: Schedule.from_config({"schedule": "VPLinear", "beta_mim": 1}), "Did you mean 'beta_min'"),
        (lambda: VPLinear().coefficients(torch.rand(3), torch.zeros(2, 1)), "one time or one time per row"),
    ],
)
def test_bad_schedules_are_refused_with_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_schedule_of_ones_own_is_checked_too():
    class Rising(VE):
        def log_sigma(self, t):
            return -super().log_sigma(t)

    with pytest.raises(ValueError, match="must fall with t"):
        Rising()


def test_flow_matching_interpolates_data_and_noise_linearly():
    s = FlowMatching(label_scale=1000)
    t = torch.tensor([0.01, 0.25, 0.9], dtype=torch.float64)
    assert torch.allclose(s.alpha(t), 1 - t, rtol=1e-14)
    assert torch.allclose(s.sigma(t), t, rtol=1e-14)
    assert torch.allclose(s.label(t), 1000 * t, rtol=1e-14)
