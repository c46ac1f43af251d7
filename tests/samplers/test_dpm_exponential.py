"""The coefficients: exact for polynomials of the promised degree, for every form, order and variant, and for no more."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
from dpm_cases import LINEAR, OfTime, column, time_of

from trueward.samplers import DPMSolverMultistep, DPMSolverSinglestep, dpm_multistep, dpm_singlestep, exponential
from trueward.times import Levels, Times

POLYNOMIAL = (0.3, -0.4, 0.25)
EXACT = {
    "noise": (0.877394936843, 0.839488383388, 0.823549460583),
    "data": (0.603727993792, 0.600453752799, 0.608479590170),
}
NODES = (-1.7, -1.0, -0.5, 0.4)  # two steps of history, then the step that is tested
FORMS = ("noise", "data")
METHODS = [
    # kind, options, the degree up to which the step is exact
    ("single", {"order": 1}, 0),
    ("single", {"order": 2}, 0),
    ("single", {"order": 2, "solver_type": "taylor"}, 1),
    ("single", {"order": 3}, 1),
    ("single", {"order": 3, "solver_type": "taylor"}, 2),
    ("multi", {"order": 2}, 0),
    ("multi", {"order": 2, "solver_type": "taylor"}, 1),
    ("multi", {"order": 3}, 1),
    ("multi", {"order": 3, "ms3": "consistent"}, 2),
]
IDS = ["-".join([kind, *map(str, options.values())]) for kind, options, _ in METHODS]


def polynomial_error(kind, options, form, degree):
    """The error of one step from lambda = -0.5 to 0.4, x = 0.7, with a model that is a polynomial in lambda."""
    model = OfTime(lambda lam: sum(c * lam**i for i, c in enumerate(POLYNOMIAL[: degree + 1])) + 0.0 * lam, form)
    times = [time_of(lam) for lam in NODES]
    if kind == "single":
        solver = DPMSolverSinglestep(1, algorithm=form, t_start=times[2], t_end=times[3], **options)
        run = solver.start(model)
        x = solver.step(run, column(0.7), 0)
    else:
        solver = DPMSolverMultistep(3, grid=Times(times), algorithm=form, lower_order_final=0, **options)
        run = solver.start(model)
        for level in range(2):  # fills the history; the model does not look at x
            solver.step(run, column(0.7), level)
        x = solver.step(run, column(0.7), 2)
    return x.item() - EXACT[form][degree]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "options", "exact_to"), METHODS, ids=IDS)
def test_a_step_integrates_polynomials_of_its_degree_exactly(kind, options, exact_to, form):
    for degree in range(exact_to + 1):
        assert abs(polynomial_error(kind, options, form, degree)) < 2e-12
    if exact_to < 2:
        assert abs(polynomial_error(kind, options, form, exact_to + 1)) > 1e-3


@pytest.mark.parametrize(
    ("kind", "options", "degree", "noise", "data"),
    [
        ("single", {"order": 3}, 2, -3.7e-3, -2.7e-3),
        ("multi", {"order": 3, "ms3": "reference"}, 2, 2.2e-2, -2.0e-2),
        ("single", {"order": 2}, 1, 2.2e-2, 1.3e-2),
        ("single", {"order": 1}, 1, -1.2e-1, 1.0e-1),
    ],
)
def test_the_error_beyond_the_degree_is_the_known_one(kind, options, degree, noise, data):
    for form, value in (("noise", noise), ("data", data)):
        assert polynomial_error(kind, options, form, degree) == pytest.approx(value, rel=0.1)


def worst(exact_to=None):
    """The largest error of all methods at the degrees they should be exact for."""
    return max(
        abs(polynomial_error(kind, options, form, degree))
        for kind, options, exact in METHODS
        for form in FORMS
        for degree in range(exact + 1)
    )


def test_every_planted_coefficient_error_is_caught(plant):
    right = {name: getattr(exponential, name) for name in ("u_phi", "third_order_stage", "ode_interval")}
    assert worst() < 2e-12

    def flipped(k, u):  # the sign of the B term
        return right["u_phi"](k, u) * (-1 if k == 2 else 1)

    def swapped(k, u):  # phi_2 where phi_3 belongs
        return right["u_phi"](min(k, 2), u)

    for wrong in (flipped, swapped):
        plant(exponential, "u_phi", wrong)
        assert worst() > 1e-3
        plant(exponential, "u_phi", right["u_phi"])

    def same_sign(algorithm, s, t):  # the noise form's exponent in the data form
        step = right["ode_interval"](algorithm, s, t)
        return step._replace(u=np.abs(step.u))

    for module in (dpm_singlestep, dpm_multistep):
        plant(module, "ode_interval", same_sign)
    assert worst() > 1e-2


def test_b_taken_at_h_instead_of_r2_h_is_caught():
    right = exponential.third_order_stage

    def wrong(stage, r1, r2):
        return right(stage._replace(u=stage.u / r2), r1, r2)

    s = Levels.of(LINEAR, np.array([time_of(-0.5)]))
    t = Levels.of(LINEAR, np.array([time_of(-0.5 + 0.9 * 2 / 3)]))
    for form in FORMS:
        lam = OfTime(lambda lam: lam, form)
        model = [0.5 * lam.schedule.log_snr(time_of(v)).item() for v in (-0.5, -0.5 + 0.3)]
        stage = exponential.ode_interval(form, s, t)
        values = []
        for rule in (right, wrong):
            of_x, of_0, of_1 = (w.item() for w in rule(stage, 1 / 3, 2 / 3))
            values.append(of_x * 0.7 + of_0 * model[0] + of_1 * model[1])
        # the stage is exact for a model linear in lambda: compare with the fine quadrature of the exact solution
        grid = np.linspace(-0.5, 0.1, 200_001)
        kernel = np.exp(-grid if form == "noise" else grid) * grid
        integral = np.trapezoid(kernel, grid)
        exact = stage.L.item() * 0.7 + (-t.alpha.item() * integral if form == "noise" else t.sigma.item() * integral)
        assert values[0] == pytest.approx(exact, abs=1e-10)
        assert abs(values[1] - exact) > 1e-3


@pytest.mark.parametrize("k", [1, 2, 3])
def test_phi_functions_keep_their_digits_near_zero(k):
    getcontext().prec = 60
    u = np.array([0.0, 1e-12, -1e-7, 1e-3, -1e-3, 0.02, -0.3, 0.499999, 0.5, -0.500001, 2.0, -6.0, 9.6])
    for value, found in zip(u, exponential.u_phi(k, u)):
        v = Decimal(float(value))
        exact = sum(v ** (j + 1) / math.factorial(j + k) for j in range(120)) if value else Decimal(0)
        assert found == pytest.approx(float(exact), rel=2e-14, abs=1e-300)


def test_direct_evaluation_would_lose_them():
    u = 1e-3
    naive = (math.expm1(u) / u - 1.0) / u - 0.5
    assert abs(naive / exponential.u_phi(3, np.array(u)).item() - 1.0) > 1e-10


def test_the_two_forms_agree_at_order_one():
    s, t = (Levels.of(LINEAR, np.array([v])) for v in (0.8, 0.3))
    x, eps = 1.3, -0.4
    mean = (x - s.sigma.item() * eps) / s.alpha.item()
    noise, data = (exponential.first_order(exponential.ode_interval(form, s, t)) for form in FORMS)
    assert (noise[0] * x + noise[1] * eps).item() == pytest.approx((data[0] * x + data[1] * mean).item(), abs=1e-14)
