"""Time samplers: their distribution, density and what they refuse."""

import pytest
import torch

from trueward.objectives import (
    DiscreteTimes,
    ImportanceTimes,
    LogNormalTimes,
    UniformTimes,
    default_times,
    time_sampler,
    times_from_config,
)
from trueward.schedules import EDM, VE, DiscreteSchedule, VPCosine, VPLinear

CONTINUOUS = [VPLinear(), VPCosine(), VE(), EDM()]
SAMPLERS = [UniformTimes(), LogNormalTimes(), LogNormalTimes(mean=0.5, std=0.3), ImportanceTimes()]


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("times", SAMPLERS, ids=lambda t: f"{type(t).__name__}{getattr(t, 'std', '')}")
def test_the_density_is_the_derivative_of_the_share_below(times, schedule):
    u = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    h = 1e-6
    t = times.quantile(u, schedule)
    slope = (times.quantile(u + h, schedule) - times.quantile(u - h, schedule)) / (2 * h)
    torch.testing.assert_close(times.density(t, schedule) * slope, torch.ones_like(u), rtol=1e-4, atol=0)
    assert (t.diff() > 0).all() or isinstance(times, LogNormalTimes | ImportanceTimes)


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("times", SAMPLERS, ids=lambda t: f"{type(t).__name__}{getattr(t, 'std', '')}")
def test_times_stay_between_the_ends(times, schedule):
    u = torch.tensor([1e-12, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-12], dtype=torch.float64)
    low, high = schedule.t_min + 0.1 * schedule.t_max, 0.6 * schedule.t_max
    cut = type(times)(**{**times.__dict__, "t_min": low, "t_max": high})
    t = cut.quantile(u, schedule)
    assert t.dtype == torch.float64
    assert ((t >= low) & (t <= high)).all()


def test_importance_times_are_uniform_in_log_snr():
    schedule = VPLinear()
    log_snr = schedule.log_snr(
        ImportanceTimes().quantile(torch.linspace(0.01, 0.99, 50, dtype=torch.float64), schedule)
    )
    torch.testing.assert_close(log_snr.diff(), log_snr.diff().mean().expand(49), rtol=1e-6, atol=0)


def test_log_normal_times_have_the_mean_and_deviation_they_say():
    z = -0.5 * EDM().log_snr(LogNormalTimes().quantile((torch.arange(20000) + 0.5) / 20000, EDM()))
    assert abs(z.mean().item() + 1.2) < 0.01
    assert abs(z.std().item() - 1.2) < 0.01


def test_discrete_times_are_the_nodes_each_as_often():
    schedule = DiscreteSchedule.linear(10)
    t = DiscreteTimes().quantile((torch.arange(1000) + 0.5) / 1000, schedule)
    nodes, counts = t.unique(return_counts=True)
    torch.testing.assert_close(nodes, schedule.time_of_node(torch.arange(10)))
    assert (counts == 100).all()
    cut = DiscreteTimes(t_min=0.3, t_max=0.8).quantile((torch.arange(600) + 0.5) / 600, schedule)
    torch.testing.assert_close(cut.unique(), torch.arange(3, 9, dtype=torch.float64) / 10)


def test_every_schedule_has_a_sampler_that_goes_with_it():
    assert isinstance(default_times(EDM()), LogNormalTimes)
    assert isinstance(default_times(VPLinear()), UniformTimes)
    assert isinstance(default_times(DiscreteSchedule.linear(10)), DiscreteTimes)


@pytest.mark.parametrize(
    "times", [*SAMPLERS, DiscreteTimes(t_min=0.5, stratified=False)], ids=lambda t: type(t).__name__
)
def test_a_sampler_is_remade_from_its_description(times):
    assert times_from_config(times.to_config()) == times


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: time_sampler("lognormal"), "Did you mean 'log-normal'"),
        (lambda: LogNormalTimes(std=0.0), "std > 0"),
        (lambda: UniformTimes(t_min=0.5, t_max=0.2).ends(VPLinear()), "t_min < t_max"),
        (lambda: UniformTimes(t_max=2.0).ends(VPLinear()), "t_max <= 1"),
        (lambda: DiscreteTimes().quantile(torch.tensor([0.5]), VPLinear()), "needs a DiscreteSchedule"),
        (lambda: ImportanceTimes(t_min=0.0).quantile(torch.tensor([0.5]), VPLinear()), "positive t_min"),
        (lambda: times_from_config({"times": "UniformTimes", "tmin": 1}), "Did you mean 't_min'"),
    ],
)
def test_wrong_calls_get_one_clear_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
