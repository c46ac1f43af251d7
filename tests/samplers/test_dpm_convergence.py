"""Exactness on point masses and Gaussians, and the measured orders on a mixture: order 3 means order 3."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from dpm_cases import LATENTS, LINEAR, MIXTURE, T_END, column, errors, gaussian, slopes, time_of

from trueward.samplers import (
    DDIM,
    DPMSolverFast,
    DPMSolverMultistep,
    DPMSolverSinglestep,
    dpm_singlestep,
)
from trueward.samplers.plan import Table
from trueward.samplers.run import Run
from trueward.times import Times, UniformLogSNR
from trueward.truth import Gaussian

FORMS = ("noise", "data")
FINE = (80, 160, 320, 640)


# --- exactness --------------------------------------------------------------------------------------------------------


def point_mass_error(solver, plan=None):
    model = Gaussian([0.4], [0.0]).denoiser(LINEAR)
    alpha_0, sigma_0 = LINEAR.at(T_END)
    alpha_T, sigma_T = LINEAR.at(1.0)
    x_T = column(-1.5, 0.2, 2.0)
    exact = 0.4 * alpha_0 + (sigma_0 / sigma_T) * (x_T - 0.4 * alpha_T)
    run = Run(model, plan or solver.plan(LINEAR), None, {})
    for _t, x in solver.solve(run, x_T):  # noqa: B007
        pass
    return (x - exact).abs().max().item()


@pytest.mark.parametrize("solver_type", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("form", "tolerance"), [("noise", 1e-9), ("data", 1e-13)])
def test_one_step_is_exact_for_a_point_mass(form, tolerance, order, solver_type):
    options = {"order": order, "algorithm": form, "solver_type": solver_type}
    assert point_mass_error(DPMSolverSinglestep(1, **options)) < tolerance
    assert point_mass_error(DPMSolverMultistep(4, lower_order_final=0, **options)) < tolerance


@pytest.mark.parametrize("order", [2, 3])
def test_asking_the_model_at_another_time_than_the_inner_node_is_caught(order):
    solver = DPMSolverSinglestep(1, order=order, algorithm="noise")
    plan = solver.plan(LINEAR)
    halfway = Table(np.array([0.5 * (1.0 + T_END)]))  # halfway in t instead of in lambda
    wrong = dataclasses.replace(plan, times_1=halfway)
    assert point_mass_error(solver, wrong) > 1e-3


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (1, (2.26e-1, 1.16e-1, 5.90e-2, 2.97e-2)),
        (2, (3.10e-2, 7.46e-3, 1.83e-3, 4.53e-4)),
        (3, (3.71e-4, 3.91e-5, 4.43e-6, 5.26e-7)),
    ],
)
def test_errors_on_the_standard_normal_are_the_known_ones(order, expected):
    found = errors(
        lambda n: DPMSolverSinglestep(n, order=order, algorithm="noise"),
        (20, 40, 80, 160),
        gaussian(0.0, 1.0),
        column(-1.5, 0.2, 2.0),
    )
    assert found == pytest.approx(expected, rel=0.05)


def test_the_taylor_variant_has_other_errors_on_the_standard_normal():
    make = lambda n: DPMSolverSinglestep(n, order=2, algorithm="noise", solver_type="taylor")  # noqa: E731
    found = errors(make, (20, 40), gaussian(0.0, 1.0), column(-1.5, 0.2, 2.0))
    assert found[0] == pytest.approx(9.5e-3, rel=0.05)


@pytest.mark.parametrize(
    ("order", "first", "last"), [(1, 1.13e-1, 1.48e-2), (2, 1.55e-2, 2.26e-4), (3, 1.85e-4, 2.63e-7)]
)
def test_errors_on_a_narrow_shifted_gaussian_are_the_known_ones(order, first, last):
    make = lambda n: DPMSolverSinglestep(n, order=order, algorithm="noise")  # noqa: E731
    found = errors(make, (20, 160), gaussian(0.4, 0.25), column(-1.5, 0.2, 2.0))
    assert found == pytest.approx((first, last), rel=0.05)


@pytest.mark.parametrize("kind", [DPMSolverMultistep, DPMSolverSinglestep, DPMSolverFast])
def test_order_one_is_ddim(kind):
    model = gaussian(0.0, 1.0).denoiser(LINEAR)
    x_T = column(1.0, -0.7)
    times = UniformLogSNR()(LINEAR, 10)
    # DDIM's last step goes on to the data: compare at t_end
    ddim = DDIM(11, grid=Times(times))
    reached = ddim.sample(model, x_T, trajectory=True).trajectory[10]
    theta = np.arctan2(LINEAR.sigma(torch.tensor(times)).numpy(), LINEAR.alpha(torch.tensor(times)).numpy())
    product = np.prod(np.cos(np.diff(theta)))
    assert product == pytest.approx(0.7869992513, abs=1e-10)
    for form in FORMS:
        x = kind(10, order=1, algorithm=form).sample(model, x_T).x
        assert torch.allclose(x, reached, rtol=0, atol=1e-12)
        assert torch.allclose(x, product * x_T, rtol=0, atol=1e-12)
    cleaned = kind(10, order=1, denoise_to_zero=True).sample(model, x_T).x
    assert torch.allclose(cleaned, ddim.sample(model, x_T).x, rtol=0, atol=1e-12)


# --- orders on the mixture --------------------------------------------------------------------------------------------


def test_the_reference_solution_is_the_known_one():
    known = column(
        -1.08725621, -0.95300073, -0.78576977, -0.17544961, 0.32972958, 0.54442986, 0.72482977, 0.89235597, 1.05363441
    )
    assert torch.allclose(MIXTURE.flow(LATENTS, LINEAR, 1.0, T_END), known, rtol=0, atol=3e-8)


@pytest.mark.parametrize(
    ("order", "form", "expected"),
    [
        (1, "noise", (0.82, 0.90, 0.94)),
        (2, "noise", (1.98, 1.99, 1.99)),
        (3, "noise", (2.96, 2.98, 2.99)),
        (2, "data", (1.97, 1.99, 2.00)),
        (3, "data", (2.99, 2.99, 3.00)),
    ],
)
def test_singlestep_order_k_converges_with_order_k(order, form, expected):
    found = errors(lambda n: DPMSolverSinglestep(n, order=order, algorithm=form), FINE)
    assert slopes(found) == pytest.approx(expected, abs=0.01)
    assert abs(slopes(found)[-1] - order) < 0.1
    ends = {(2, "noise"): (1.15e-3, 1.84e-5), (3, "noise"): (1.78e-5, 3.66e-8), (3, "data"): (2.66e-6, 5.28e-9)}
    if (order, form) in ends:
        assert found[[0, -1]] == pytest.approx(ends[order, form], rel=0.01)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [2, 3])
def test_the_taylor_variant_converges_with_the_same_order(order, form):
    found = errors(lambda n: DPMSolverSinglestep(n, order=order, algorithm=form, solver_type="taylor"), FINE)
    assert abs(slopes(found)[-1] - order) < 0.1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"order": 2, "algorithm": "noise"}, (2.00, 2.01, 2.01)),
        ({"order": 2, "algorithm": "data"}, (2.04, 2.02, 2.01)),
        ({"order": 3, "algorithm": "noise"}, (1.94, 1.93, 1.96)),
        ({"order": 3, "algorithm": "data"}, (2.39, 2.24, 2.13)),
        ({"order": 3, "algorithm": "noise", "ms3": "consistent"}, (2.39, 2.77, 2.90)),
        ({"order": 3, "algorithm": "data", "ms3": "consistent"}, (3.04, 3.03, 3.02)),
    ],
)
def test_multistep_converges_with_the_order_it_claims(options, expected):
    solver = DPMSolverMultistep(80, **options)
    found = slopes(errors(lambda n: dataclasses.replace(solver, steps=n), FINE))
    assert found == pytest.approx(expected, abs=0.01)
    if solver.convergence_order == 3:
        assert found[-1] >= 2.8
    else:
        assert 1.9 <= found[-1] <= 2.3
    if solver.order == 2:
        assert 1.9 <= found[-1] <= 2.1


def test_multistep_taylor_converges_with_order_two():
    for form in FORMS:
        found = errors(lambda n: DPMSolverMultistep(n, algorithm=form, solver_type="taylor"), FINE)  # noqa: B023
        assert 1.9 <= slopes(found)[-1] <= 2.1


def test_dropping_the_half_of_order_two_is_caught(plant):
    right = dpm_singlestep.second_order
    plant(dpm_singlestep, "second_order", lambda step, r1, kind: right(step, 0.5 * r1, kind))
    found = slopes(errors(lambda n: DPMSolverSinglestep(n, order=2, algorithm="noise"), FINE))
    assert found[-1] == pytest.approx(1.07, abs=0.05)


@pytest.mark.parametrize("r2", [0.5, 1.0])
def test_order_three_with_another_r2_than_two_thirds_is_caught(plant, r2):
    plant(dpm_singlestep, "INNER", {**dpm_singlestep.INNER, 3: (1.0 / 3.0, r2)})
    found = slopes(errors(lambda n: DPMSolverSinglestep(n, order=3, algorithm="noise"), FINE))
    assert found[-1] == pytest.approx(2.0, abs=0.1)


def test_order_three_with_another_r1_is_still_of_order_three(plant):
    plant(dpm_singlestep, "INNER", {**dpm_singlestep.INNER, 3: (0.5, 2.0 / 3.0)})
    found = slopes(errors(lambda n: DPMSolverSinglestep(n, order=3, algorithm="noise"), FINE))
    assert found[-1] == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("inner", ["grid", "lambda"])
def test_order_three_holds_on_the_quadratic_grid(inner):
    make = lambda n: DPMSolverSinglestep(n, order=3, algorithm="noise", grid="quadratic", inner=inner)  # noqa: E731
    assert slopes(errors(make, FINE))[-1] == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("inner", "form", "expected"),
    [
        ("grid", "noise", (1.8, 2.0, 2.2, 2.45, 2.7, 2.9)),
        ("lambda", "noise", (2.5, 2.3, 2.4, 2.6, 2.7, 2.9)),
        ("lambda", "data", (2.5, 2.7, 3.0, 3.3, 3.6, 4.1)),
    ],
)
def test_inner_points_of_the_uniform_grid_give_the_known_slopes(inner, form, expected):
    make = lambda n: DPMSolverSinglestep(n, order=3, algorithm=form, grid="uniform", inner=inner)  # noqa: E731
    found = slopes(errors(make, (20, 40, 80, 160, 320, 640, 1280)))
    assert found == pytest.approx(expected, abs=0.11)


def test_the_fast_composition_claims_only_the_order_its_last_step_has():
    for rest, order in ((0, 2), (1, 2), (2, 3)):
        assert DPMSolverFast(30 + rest).convergence_order == order
        error = errors(DPMSolverFast, [3 * n + rest for n in (80, 160, 320)])
        assert slopes(error)[-1] > order - 0.1


# --- local errors -----------------------------------------------------------------------------------------------------


def local_error(solver_of, h, history=0, swap=False):
    """The error of one step of h from t = 0.3, with exact history, on the nine trajectories."""
    model, schedule = MIXTURE.denoiser(LINEAR), LINEAR
    lam = 0.5 * schedule.log_snr(0.3).item()
    times = [time_of(lam - k * h) for k in range(history, 0, -1)] + [0.3, time_of(lam + h)]
    solver = solver_of(len(times) - 1, times)
    run = solver.start(model)
    x = [MIXTURE.flow(LATENTS, schedule, 1.0, t) for t in times]
    for level in range(history):
        run.history.insert(0, (level, 1.0, model(x[level], times[level]).eps))
    if swap:
        run.history[:] = [(history - 1, *run.history[1][1:]), (history - 2, *run.history[0][1:])]
    return (solver.step(run, x[history], history) - x[-1]).abs().max().item()


def single(order):
    return lambda steps, times: DPMSolverSinglestep(
        1, order=order, algorithm="noise", t_start=times[-2], t_end=times[-1]
    )


def multi(order):
    return lambda steps, times: DPMSolverMultistep(
        steps, grid=Times(times), order=order, algorithm="noise", ms3="consistent", lower_order_final=0
    )


@pytest.mark.parametrize(
    ("solver_of", "history", "expected"),
    [(single(1), 0, 2.0), (single(2), 0, 3.0), (single(3), 0, 4.1), (multi(2), 2, 3.0), (multi(3), 2, 3.9)],
    ids=["1", "2S", "3S", "2M", "3M"],
)
def test_the_local_error_has_one_order_more(solver_of, history, expected):
    ratio = local_error(solver_of, 0.1, history) / local_error(solver_of, 0.05, history)
    assert math.log2(ratio) == pytest.approx(expected, abs=0.2)


def test_a_history_in_the_wrong_order_is_caught():
    ratio = local_error(multi(3), 0.1, 2, swap=True) / local_error(multi(3), 0.05, 2, swap=True)
    assert math.log2(ratio) < 2.5
