"""The same numbers as diffusers' schedulers on the same integer timesteps.

They hold the state and the noise levels in float32. The levels are given back their digits here, or a last step that is huge
in log-SNR would magnify their rounding; the rounding of the state stays, hence 1e-5.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dpm_cases import LATENTS, MIXTURE

from trueward.noise import Noise
from trueward.samplers import DPMSolverFast, DPMSolverMultistep, DPMSolverSDE
from trueward.schedules import DiscreteSchedule
from trueward.times import Times

diffusers = pytest.importorskip("diffusers")

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "DeprecationWarning")]
TABLE = DiscreteSchedule.linear()
MODEL = MIXTURE.denoiser(TABLE)
FORMS = {"noise": "dpmsolver", "data": "dpmsolver++"}
TYPES = {"dpmsolver": "midpoint", "taylor": "heun"}


def theirs(kind, steps, noise=None, **config):
    """The sample of a diffusers scheduler with the exact model, and the times it visited."""
    scheduler = kind(num_train_timesteps=1000, beta_schedule="linear", **config)
    scheduler.set_timesteps(steps)
    nodes = torch.cat([scheduler.timesteps, torch.zeros(1, dtype=torch.int64)])
    exact = torch.exp(-0.5 * TABLE.log_snr(TABLE.time_of_node(nodes)))
    exact[-1] *= config["final_sigmas_type"] != "zero"
    assert torch.allclose(scheduler.sigmas.double(), exact, rtol=1e-3)
    scheduler.sigmas = exact
    x, times = LATENTS.clone(), []
    for i, n in enumerate(scheduler.timesteps):
        t = TABLE.time_of_node(int(n)).item()
        times.append(t)
        extra = {} if noise is None else {"variance_noise": noise(i + 1)}
        x = scheduler.step(MODEL(x, t).eps, n, x, **extra).prev_sample
    return x, times


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("solver_type", TYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_multistep_ending_at_the_first_node(order, form, solver_type, steps):
    x, times = theirs(
        diffusers.DPMSolverMultistepScheduler,
        steps,
        solver_order=order,
        algorithm_type=FORMS[form],
        solver_type=TYPES[solver_type],
        final_sigmas_type="sigma_min",
    )
    ours = DPMSolverMultistep(
        steps,
        grid=Times([*times, TABLE.t_min]),
        order=order,
        algorithm=form,
        solver_type=solver_type,
        lower_order_final=15,
    )
    assert (ours.sample(MODEL, LATENTS).x - x).abs().max() < 1e-5


class EndsOnTheData(DPMSolverMultistep):
    """diffusers counts the step to the data among those whose order falls at the end."""

    def step_orders(self):
        orders = super().step_orders()
        return np.minimum(orders, self.steps + 1 - np.arange(self.steps)) if self.steps + 1 < 15 else orders


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_multistep_ending_on_the_data(order, steps):
    x, times = theirs(diffusers.DPMSolverMultistepScheduler, steps, solver_order=order, final_sigmas_type="zero")
    options = {"grid": Times(times), "order": order, "lower_order_final": False, "denoise_to_zero": True}
    ours = EndsOnTheData(steps - 1, **options)
    assert (ours.sample(MODEL, LATENTS).x - x).abs().max() < 1e-5
    if order < 3:
        assert torch.equal(
            DPMSolverMultistep(steps - 1, **options).sample(MODEL, LATENTS).x, ours.sample(MODEL, LATENTS).x
        )


@pytest.mark.parametrize("order", [1, 2])
def test_the_sde_with_the_same_noise(order):
    stream = Noise.rows(7, 9)
    x, times = theirs(
        diffusers.DPMSolverMultistepScheduler,
        20,
        noise=lambda draw: stream.normal(draw, (1,), torch.float64),
        solver_order=order,
        algorithm_type="sde-dpmsolver++",
        final_sigmas_type="sigma_min",
    )
    ours = DPMSolverSDE(20, grid=Times([*times, TABLE.t_min]), order=order)
    assert (ours.sample(MODEL, LATENTS, seed=7).x - x).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("order", "solver_type", "steps"),
    # order 2 of an even number ends there with two steps of order 1, and "midpoint" of order 3 has another inner stage
    [(1, "dpmsolver", 8), (2, "dpmsolver", 9), (2, "taylor", 9), (3, "taylor", 9), (3, "taylor", 10)],
)
@pytest.mark.parametrize("form", FORMS)
def test_singlestep_where_the_compositions_agree(order, solver_type, steps, form):
    x, times = theirs(
        diffusers.DPMSolverSinglestepScheduler,
        steps,
        solver_order=order,
        algorithm_type=FORMS[form],
        solver_type=TYPES[solver_type],
        final_sigmas_type="sigma_min",
        lower_order_final=True,
    )
    ours = DPMSolverFast(steps, grid=Times([*times, TABLE.t_min]), order=order, algorithm=form, solver_type=solver_type)
    assert (ours.sample(MODEL, LATENTS).x - x).abs().max() < 1e-5


def test_the_consistent_variant_of_order_three_is_another_method():
    x, times = theirs(diffusers.DPMSolverMultistepScheduler, 20, solver_order=3, final_sigmas_type="sigma_min")
    ours = DPMSolverMultistep(20, grid=Times([*times, TABLE.t_min]), order=3, ms3="consistent")
    assert (ours.sample(MODEL, LATENTS).x - x).abs().max() > 1e-3


def test_dynamic_thresholding_is_theirs():
    from trueward.samplers import DynamicThresholding

    scheduler = diffusers.DPMSolverMultistepScheduler(thresholding=True)
    x = 2.0 * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for top in (1.0, 1.5):
        scheduler.register_to_config(sample_max_value=top)
        expected = scheduler._threshold_sample(x.clone())
        # they also clip s to the maximum from above, which takes the dynamics away
        assert expected.abs().max() <= 1.0 + 1e-6
    loose = diffusers.DPMSolverMultistepScheduler(thresholding=True, sample_max_value=100.0)
    assert torch.allclose(loose._threshold_sample(x.clone()), DynamicThresholding()(x, (-1.0, 1.0)), atol=1e-6)
