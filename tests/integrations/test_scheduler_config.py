"""The forward process read from a configuration against diffusers' own tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueward.integrations import prediction_of, schedule_of, times_of_nodes, visited_nodes
from trueward.integrations.scheduler_config import alphas_cumprod
from trueward.schedules import EDM, DiscreteSchedule, FlowMatching

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install trueward[diffusers]")

TABLES = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "linear", "num_train_timesteps": 50, "beta_start": 1e-3, "beta_end": 0.3},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"trained_betas": [0.01, 0.02, 0.3]},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
]


@pytest.mark.parametrize("options", TABLES, ids=lambda o: "-".join(map(str, o.values()))[:40])
def test_alphas_cumprod_are_those_of_diffusers(options):
    scheduler = diffusers.DDPMScheduler(**options)
    assert torch.allclose(alphas_cumprod(scheduler.config), scheduler.alphas_cumprod.double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", TABLES, ids=lambda o: "-".join(map(str, o.values()))[:40])
def test_the_schedule_has_diffusers_noise_levels_and_integer_labels_at_its_nodes(options):
    scheduler = diffusers.DDPMScheduler(**options)
    schedule = schedule_of(scheduler)
    n = torch.arange(schedule.nodes)
    t = schedule.time_of_node(n)
    assert torch.allclose(schedule.alpha(t) ** 2, scheduler.alphas_cumprod[: schedule.nodes].double(), atol=2e-6)
    assert torch.allclose(schedule.label(t), n.double(), rtol=0, atol=1e-9)
    dropped = scheduler.alphas_cumprod[schedule.nodes :].double()
    assert bool((0.5 * torch.log(dropped / (1 - dropped)) < -5.0).all())


def test_zero_terminal_snr_drops_the_node_without_signal_and_keeps_the_labels():
    config = TABLES[-1]
    schedule = schedule_of(config)
    assert 980 < schedule.nodes < 1000
    assert schedule.label(1.0).item() == pytest.approx(schedule.nodes - 1)
    assert schedule_of(config, half_log_snr_clip=-20.0).nodes == 999


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 10, 1000])
@pytest.mark.parametrize("offset", [0, 1])
def test_visited_nodes_are_the_timesteps_of_diffusers(spacing, steps, offset):
    if steps == 1000 and spacing == "leading" and offset:
        pytest.skip("diffusers steps off the table here")
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    assert np.array_equal(visited_nodes(scheduler.config, steps), scheduler.timesteps.numpy())


def test_edm_and_flow_schedulers_are_recognised():
    edm = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0)
    assert schedule_of(edm) == EDM(0.01, 50.0)
    assert prediction_of(edm) == "edm"
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    assert schedule_of(flow) == FlowMatching(label_scale=1000.0)
    assert prediction_of(flow) == "flow"


@pytest.mark.parametrize(
    ("name", "ours"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v"), ("flow_prediction", "flow")]
)
def test_prediction_types_have_trueward_names(name, ours):
    assert prediction_of({"prediction_type": name}) == ours


def test_unknown_names_are_explained():
    with pytest.raises(ValueError, match=r"beta_schedule 'linaer'.*Did you mean 'linear'"):
        schedule_of({"beta_schedule": "linaer"})
    with pytest.raises(ValueError, match=r"prediction_type 'eps'.*epsilon"):
        prediction_of({"prediction_type": "eps"})
    with pytest.raises(ValueError, match="timestep_spacing"):
        visited_nodes({"timestep_spacing": "cosine"}, 10)
    with pytest.raises(ValueError, match=r"steps must lie in 1 \.\.\. 1000"):
        visited_nodes({}, 1001)
    with pytest.raises(ValueError, match="Node 999 is noisier"):
        times_of_nodes(DiscreteSchedule.cosine(), np.array([999, 500]))
