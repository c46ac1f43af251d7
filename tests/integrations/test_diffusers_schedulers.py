"""diffusers' schedulers under the same examination as ours: the adapter is faithful, and what is known to be wrong is found."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from trueward.certification import Setting, certify, subject
from trueward.certification.conduct import Bench, thread_safety
from trueward.certification.convergence import TRUTH, convergence
from trueward.certification.safety import nan_safety
from trueward.integrations.diffusers_schedulers import SchedulerSubject
from trueward.samplers import DDIM
from trueward.schedules import DiscreteSchedule, VPLinear
from trueward.times import Times

LINEAR = DiscreteSchedule.linear(half_log_snr_clip=-20.0)


def make(name: str, **options: object) -> SchedulerSubject:
    made = subject(f"diffusers:{name}", options=options)
    assert isinstance(made, SchedulerSubject)
    return made


def test_ddim_of_diffusers_through_the_adapter_is_our_ddim_on_the_same_nodes() -> None:
    what, model = make("DDIMScheduler"), TRUTH.denoiser(LINEAR)
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    levels = what.levels(LINEAR, 10, Setting())
    assert levels.t[:3].tolist() == pytest.approx([0.901, 0.801, 0.701])
    assert levels.sigma[-1] == 0
    ours = DDIM(steps=10, grid=Times(levels.t[:-1])).sample(model, x_T).x
    theirs = what.run(model, LINEAR, x_T, 10).x
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-6)  # its tables are float32


@pytest.mark.parametrize(
    ("name", "grid", "order"), [("EulerDiscreteScheduler", "karras", 1), ("HeunDiscreteScheduler", "karras", 2)]
)
def test_schedulers_in_units_of_alpha_converge_to_the_same_exact_solution(name: str, grid: str, order: int) -> None:
    cell = convergence(make(name), "linear", LINEAR, grid, [10, 20, 40], None)
    assert cell.errors[-1] < 0.1
    assert cell.errors[0] > 1.5**order * cell.errors[-1]


def test_integer_timesteps_end_the_convergence_on_a_fine_grid() -> None:
    """The solver steps on exact noise levels, but asks the model at rounded ones."""
    what = make("DPMSolverMultistepScheduler")
    cell = convergence(what, "linear", LINEAR, "exponential", [40, 80, 160], 2)
    assert cell.verdict == "FAIL"
    assert "stops converging" in cell.line
    assert cell.errors[-1] > 1e-4


def test_one_scheduler_in_two_threads_fails() -> None:
    found = thread_safety(Bench(make("DPMSolverMultistepScheduler"), LINEAR), LINEAR)
    assert found.verdict == "FAIL"


def test_nan_is_found_exactly_where_a_scheduler_gives_it() -> None:
    """Noise prediction down to no noise divides by zero in UniPC; a release that does not is not accused of it."""
    what, model = make("UniPCMultistepScheduler", predict_x0=False), TRUTH.denoiser(LINEAR)
    x = what.run(model, LINEAR, torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], 2).x
    finding, _ = nan_safety(what, {"linear": LINEAR}, budget=0)
    where = [w for detail in finding.details if detail["setting"] == "defaults" for w in detail["where"]]
    assert (not bool(x.isfinite().all())) == ("linear, 2 steps, float32" in where)


def test_the_words_of_an_option_are_read_from_its_annotation() -> None:
    sweep = make("DPMSolverMultistepScheduler").sweep()
    assert sweep["solver_order"] == (2, 1, 3)
    assert set(sweep["final_sigmas_type"]) == {"zero", "sigma_min"}
    assert "prediction_type" not in sweep
    assert make("DPMSolverMultistepScheduler").own_grid == "linspace"
    assert "log-snr" in make("DPMSolverMultistepScheduler").grids


def test_a_row_of_a_stochastic_scheduler_keeps_its_noise() -> None:
    what, model = make("DDPMScheduler"), TRUTH.denoiser(LINEAR)
    x_T = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    whole = what.run(model, LINEAR, x_T, 10, seed=3).x
    torch.testing.assert_close(what.run(model, LINEAR, x_T[3:4], 10, seed=3, indices=[3]).x, whole[3:4])
    assert (what.run(model, LINEAR, x_T, 10, seed=4).x - whole).abs().min() > 1e-3


def test_what_cannot_be_certified_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Did you mean 'DDIMScheduler'"):
        certify("diffusers:DDIMSchedular")
    with pytest.raises(ValueError, match="does not work on a table of betas"):
        certify("diffusers:VQDiffusionScheduler")
    with pytest.raises(ValueError, match="Did you mean 'solver_order'"):
        certify("diffusers:DPMSolverMultistepScheduler", options={"solver_ordr": 2})
    with pytest.raises(ValueError, match="needs a DiscreteSchedule with all its nodes, got VPLinear"):
        make("DDIMScheduler").run(TRUTH.denoiser(VPLinear()), VPLinear(), torch.zeros(1, 1), 5)
