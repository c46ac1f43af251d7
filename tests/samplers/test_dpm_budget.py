"""Network evaluations are counted exactly, the fast composition spends exactly K, and wrong options say what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dpm_cases import LATENTS, LINEAR, MIXTURE, Counting, column

from trueward.denoisers import ClassifierFreeGuidance, Denoiser, Posterior
from trueward.noise import Noise
from trueward.samplers import (
    DPMSolverAdaptive,
    DPMSolverFast,
    DPMSolverMultistep,
    DPMSolverSDE,
    DPMSolverSinglestep,
)
from trueward.schedules import EDM, VE, DiscreteSchedule, VPCosine, VPLinear
from trueward.times import EvenNodes, Times

EXAMPLES = {
    1: [1],
    2: [2],
    3: [2, 1],
    6: [3, 2, 1],
    7: [3, 3, 1],
    8: [3, 3, 2],
    9: [3, 3, 2, 1],
    10: [3, 3, 3, 1],
    12: [3, 3, 3, 2, 1],
    15: [3, 3, 3, 3, 2, 1],
    20: [3, 3, 3, 3, 3, 3, 2],
}


def spent(solver, schedule=LINEAR):
    model = Counting(MIXTURE.denoiser(schedule))
    samples = solver.sample(model, LATENTS)
    assert samples.nfe == model.calls == solver.nfe(schedule)
    return model.calls


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_fast_composition_spends_exactly_its_budget(order):
    for k in range(1, 31):
        solver = DPMSolverFast.for_budget(k, order=order)
        assert spent(solver) == k
        assert sum(solver.step_orders()) == k
        assert spent(DPMSolverFast.for_budget(k + 1, order=order, denoise_to_zero=True)) == k + 1


@pytest.mark.parametrize("k", EXAMPLES)
def test_the_fast_composition_is_the_papers(k):
    assert DPMSolverFast(k).step_orders().tolist() == EXAMPLES[k]


def test_the_fast_composition_of_order_two_ends_with_the_odd_evaluation():
    assert DPMSolverFast(6, order=2).step_orders().tolist() == [2, 2, 2]
    assert DPMSolverFast(7, order=2).step_orders().tolist() == [2, 2, 2, 1]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_other_solvers_spend_what_they_say(order):
    for k in (order, 5, 12, 13):
        assert spent(DPMSolverMultistep(k, order=order)) == k
        assert spent(DPMSolverMultistep(k, order=order, denoise_to_zero=True)) == k + 1
        assert spent(DPMSolverSinglestep(k, order=order)) == k * order
        assert spent(DPMSolverSinglestep.for_budget(k, order=order)) == order * (k // order)
        assert spent(DPMSolverMultistep.for_budget(k + 1, order=order, denoise_to_zero=True)) == k + 1


def test_every_cost_is_the_cost_of_its_step():
    for solver in (DPMSolverFast(8, denoise_to_zero=True), DPMSolverSinglestep(3, order=3), DPMSolverMultistep(4)):
        model = Counting(MIXTURE.denoiser(LINEAR))
        run, x = solver.start(model), LATENTS
        for level in range(run.plan.steps):
            before = model.calls
            x = solver.step(run, x, level)
            assert model.calls - before == solver.cost(level)


def test_a_guided_pair_is_one_call_of_the_doubled_batch():
    truth = MIXTURE.denoiser(LINEAR, classes=[0, 1])
    model = Counting(truth)
    guided = ClassifierFreeGuidance(model, 2.0)
    samples = DPMSolverMultistep(7).sample(guided, LATENTS, class_labels=1)
    assert samples.nfe == model.calls == 7
    assert set(model.rows) == {2 * len(LATENTS)}
    model.rows.clear()
    DPMSolverMultistep(7).sample(ClassifierFreeGuidance(model, 1.0), LATENTS, class_labels=1)
    assert set(model.rows) == {len(LATENTS)}


def test_the_orders_of_a_short_multistep_run_fall_at_the_end():
    assert DPMSolverMultistep(8, order=3).step_orders().tolist() == [1, 2, 3, 3, 3, 3, 2, 1]
    assert DPMSolverMultistep(10, order=3).step_orders().tolist() == [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    assert DPMSolverMultistep(8, order=3, lower_order_final=False).step_orders().tolist() == [1, 2, 3, 3, 3, 3, 3, 3]
    assert DPMSolverMultistep(14, order=2, lower_order_final=15).step_orders().tolist() == [1] + [2] * 12 + [1]


def test_eight_uniform_steps_with_and_without_a_lower_order_at_the_end():
    x_T = column(-2.0, 0.3, 1.5)
    known = {
        ("noise", True): (-0.926, 0.448, 0.729),
        ("noise", False): (-1.212, 0.720, 0.946),
        ("data", True): (-0.931, 0.450, 0.733),
        ("data", False): (-1.432, 0.795, 1.061),
    }
    for (form, lower), expected in known.items():
        solver = DPMSolverMultistep(8, grid="uniform", algorithm=form, lower_order_final=lower)
        found = solver.sample(MIXTURE.denoiser(LINEAR), x_T).x[:, 0].tolist()
        assert found == pytest.approx(expected, abs=6e-4)


# --- where sampling ends, and which levels it visits ------------------------------------------------------------------

SCHEDULES = [VPLinear(), VPCosine(), VE(), EDM(), DiscreteSchedule.linear(), DiscreteSchedule.cosine()]
SOLVERS = [DPMSolverMultistep(12), DPMSolverMultistep(12, order=3), DPMSolverFast(12), DPMSolverSinglestep(4, order=3)]


@pytest.mark.parametrize("grid", ["log-snr", "uniform", "quadratic", "karras"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_every_grid_on_every_schedule_is_monotone_with_exact_ends(schedule, grid):
    for solver in SOLVERS:
        import dataclasses

        levels = dataclasses.replace(solver, grid=grid).levels(schedule)
        assert (np.diff(levels.half_log_snr) > 0).all()
        assert levels.t[0] == schedule.t_max
        assert levels.t[-1] == schedule.t_min


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_denoise_to_zero_ends_with_the_posterior_mean(schedule):
    model = MIXTURE.denoiser(schedule)
    for solver in (DPMSolverMultistep, DPMSolverFast, DPMSolverSinglestep, DPMSolverSDE):
        for form in ("data",) if solver is DPMSolverSDE else ("data", "noise"):
            x = solver(6, algorithm=form).sample(model, n=5).x
            cleaned = solver(6, algorithm=form, denoise_to_zero=True).sample(model, n=5, trajectory=True)
            assert torch.allclose(cleaned.x, model(x, schedule.t_min).mean, rtol=0, atol=1e-10)
            assert cleaned.times[-1] == 0.0


def test_even_nodes_keep_every_question_on_a_node():
    schedule = DiscreteSchedule.linear()
    model = Counting(MIXTURE.denoiser(schedule))
    DPMSolverFast(11, grid="even").sample(model, LATENTS)
    position = np.array(model.times) * schedule.nodes
    assert np.abs(position - position.round()).max() < 1e-9


def test_a_step_of_order_o_spans_o_cells_of_a_grid_of_given_times():
    times = np.linspace(1.0, 1e-3, 9) ** 2
    model = Counting(MIXTURE.denoiser(LINEAR))
    DPMSolverFast(8, grid=Times(times)).sample(model, LATENTS)
    assert model.times == times[:-1].tolist()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DPMSolverMultistep(5, order=4), "order must be one of 1, 2, 3, got 4"),
        (lambda: DPMSolverAdaptive(order=1), "order must be one of 2, 3, got 1"),
        (lambda: DPMSolverSDE(5, order=3), "order must be one of 1, 2, got 3"),
        (lambda: DPMSolverMultistep(2, order=3), "at least that many steps, got steps=2"),
        (lambda: DPMSolverSinglestep.for_budget(2, order=3), "nfe=2 does not pay for one step of order=3"),
        (lambda: DPMSolverMultistep(5, algorithm="date"), "Unknown algorithm 'date'. Did you mean 'data'"),
        (lambda: DPMSolverMultistep(5, solver_type="tailor"), "Unknown solver type 'tailor'. Did you mean 'taylor'"),
        (lambda: DPMSolverMultistep(5, ms3="consistant"), "Unknown ms3 'consistant'. Did you mean 'consistent'"),
        (lambda: DPMSolverMultistep(5, lower_order_final=-1), "lower_order_final must be"),
        (lambda: DPMSolverSinglestep(5, inner="girt"), "Unknown inner 'girt'"),
        (lambda: DPMSolverMultistep(5, algorithm="noise", thresholding="static"), "needs algorithm='data'"),
        (
            lambda: DPMSolverFast(5, algorithm="noise", thresholding="dynamic", denoise_to_zero=True),
            "needs algorithm='data'",
        ),
        (lambda: DPMSolverMultistep(5, thresholding="dynamik"), "Did you mean 'dynamic'"),
        (lambda: DPMSolverSDE(5, algorithm="noise"), "data form only"),
        (lambda: DPMSolverMultistep(0), "steps must be a whole number >= 1, got 0"),
        (lambda: DPMSolverAdaptive(rtol=0.0), "rtol must be finite and positive"),
        (lambda: DPMSolverAdaptive(theta=1.0), "theta must lie between 0 and 1"),
        (lambda: DPMSolverAdaptive(growth=1.0), "growth must be larger than 1"),
        (lambda: DPMSolverAdaptive(max_nfe=1), "max_nfe must be at least"),
        (lambda: DPMSolverAdaptive.for_budget(10), "chooses its own number"),
        (lambda: DPMSolverMultistep(5, t_end=0.0).plan(LINEAR), "log-SNR is not finite at t=0"),
        (lambda: DPMSolverMultistep(5, grid="uniform", t_end=0.0).plan(LINEAR), "log-SNR is not finite at t=0"),
        (lambda: DPMSolverMultistep(5, t_start=1.2).plan(LINEAR), "t=1.2 lies beyond the schedule"),
        (lambda: DPMSolverMultistep(5, t_end=1e-4).plan(DiscreteSchedule.linear()), "before the first node"),
        (lambda: DPMSolverMultistep(5, grid=EvenNodes(), t_end=0.999).plan(DiscreteSchedule.linear()), "nodes"),
        (lambda: DPMSolverMultistep(5, grid=Times([1.0, 0.5, 0.1])).plan(LINEAR), "3 times make 2 steps"),
    ],
)
def test_wrong_options_say_what_is_wrong(make, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        make()


def test_a_multistep_method_refuses_to_stand_at_several_levels_or_to_jump():
    solver = DPMSolverMultistep(5)
    run = solver.start(MIXTURE.denoiser(LINEAR))
    with pytest.raises(ValueError, match="different level in every row"):
        solver.step(run, LATENTS, torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="step 1 came out of turn"):
        solver.step(run, LATENTS, 1)
    x = solver.step(run, LATENTS, 0)
    with pytest.raises(ValueError, match="step 2 came out of turn"):
        solver.step(run, x, 2)
    solver.step(run, x, 1)
    assert torch.equal(solver.step(run, LATENTS, 0), x)  # a run may start anew


def test_a_model_that_answers_nan_is_named_with_step_and_time():
    class Breaks(Denoiser):
        def forward(self, x_t, t, **condition):
            alpha, sigma = self.schedule.coefficients(t, x_t)
            late = (torch.as_tensor(t) < 0.3).any()
            return Posterior(x_t, alpha, sigma, mean=x_t * float("nan") if late else 0.5 * x_t)

    for solver in (DPMSolverMultistep(10), DPMSolverFast(10), DPMSolverSinglestep(5), DPMSolverAdaptive()):
        with pytest.raises(ValueError, match="NaN or infinite at step"):
            solver.sample(Breaks(LINEAR, shape=(2,)), n=3)


def test_stochastic_solvers_need_noise():
    solver = DPMSolverSDE(5)
    assert solver.stochastic
    with pytest.raises(ValueError, match="draws noise"):
        solver.step(solver.start(MIXTURE.denoiser(LINEAR)), LATENTS, 0)
    run = solver.start(MIXTURE.denoiser(LINEAR), Noise.rows(0, 9))
    assert solver.step(run, LATENTS, 0).shape == LATENTS.shape
