"""What must not matter: the schedule at equal log-SNR, the parametrisation, the batch, the shape, the level of other rows."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch
from dpm_cases import LATENTS, LINEAR, MIXTURE, Counting, errors, time_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trueward.denoisers import DataDenoiser, Denoiser, EpsDenoiser, Posterior, ScoreDenoiser, VDenoiser
from trueward.noise import Noise
from trueward.samplers import (
    DPMSolverAdaptive,
    DPMSolverFast,
    DPMSolverMultistep,
    DPMSolverSDE,
    DPMSolverSinglestep,
)
from trueward.schedules import EDM, VE, DiscreteSchedule, VPCosine, VPLinear
from trueward.times import Times

FORMS = ("noise", "data")
FIXED = [
    DPMSolverMultistep(8),
    DPMSolverMultistep(8, order=3, algorithm="noise", solver_type="taylor"),
    DPMSolverMultistep(8, order=3, ms3="consistent", denoise_to_zero=True),
    DPMSolverSinglestep(4),
    DPMSolverSinglestep(3, order=3, solver_type="taylor", algorithm="noise"),
    DPMSolverFast(8),
    DPMSolverFast(9, algorithm="data", denoise_to_zero=True),
]
ALL = [*FIXED, DPMSolverSDE(8), DPMSolverSDE(8, order=1, denoise_to_zero=True), DPMSolverAdaptive()]


def named(solver):
    return f"{type(solver).__name__}-{solver.order}-{solver.algorithm}"


class OfLevel(Denoiser):
    """Eps as a function of x and lambda alone."""

    def forward(self, x_t, t, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        lam = 0.5 * self.schedule.log_snr(t)
        lam = lam.view((-1,) + (1,) * (x_t.ndim - 1)) if lam.ndim else lam
        return Posterior(x_t, alpha, sigma, eps=torch.sin(x_t + 0.3 * lam) * torch.sigmoid(0.5 * lam))


@pytest.mark.parametrize("solver", FIXED[:2] + FIXED[3:6], ids=named)
def test_two_schedules_with_the_same_lambdas_give_the_same_samples(solver):
    def run(schedule, grid):
        ends = {"t_start": time_of(-4.5, schedule), "t_end": time_of(4.0, schedule)}
        sampler = (
            dataclasses.replace(solver, grid=grid, lower_order_final=0, **ends)
            if isinstance(solver, DPMSolverMultistep)
            else dataclasses.replace(solver, grid=grid, **ends)
        )
        return sampler.sample(OfLevel(schedule), LATENTS).x

    assert torch.allclose(run(VPLinear(), "log-snr"), run(VPCosine(), "log-snr"), rtol=0, atol=1e-10)
    # on a grid of times the lambdas differ, and so must the samples
    assert (run(VPLinear(), "uniform") - run(VPCosine(), "uniform")).abs().max() > 1e-4


def test_the_discrete_table_and_its_continuous_schedule_agree_where_they_meet():
    # betas that make the table's nodes lie on the continuous process
    n = 1000
    t = torch.arange(n + 1, dtype=torch.float64) / n
    log_alpha = VPLinear().log_alpha(t)
    table = DiscreteSchedule(tuple((-torch.expm1(2 * log_alpha.diff())).tolist()))
    assert table.nodes == n
    discrete, continuous = MIXTURE.denoiser(table), MIXTURE.denoiser(VPLinear(t_min=1 / n))
    for solver, tolerance in (
        (DPMSolverMultistep(27, grid="even"), 1e-10),  # 27 divides 999: every question is asked at a node
        (DPMSolverMultistep(27, order=3, grid="even"), 1e-10),
        (DPMSolverMultistep(20), 5e-5),  # between nodes the table's log alpha is linear, the other's quadratic
        (DPMSolverFast(20), 5e-5),
        (DPMSolverSinglestep(9, order=3, grid="quadratic"), 5e-5),
    ):
        difference = solver.sample(discrete, LATENTS).x - solver.sample(continuous, LATENTS).x
        assert difference.abs().max() < tolerance


class Field(nn.Module):
    """The mixture's exact answer in one of the parametrisations."""

    def __init__(self, schedule, view):
        super().__init__()
        self.model, self.view = MIXTURE.denoiser(schedule), view

    def forward(self, x, t):
        return getattr(self.model(x, t), self.view)


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), EDM(), VE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [*FIXED[:2], *FIXED[3:6]], ids=named)
def test_noise_data_v_and_score_networks_give_the_same_samples(solver, schedule):
    x_T = LATENTS * schedule.prior_std().item()
    kinds = {"eps": EpsDenoiser, "mean": DataDenoiser, "v": VDenoiser, "score": ScoreDenoiser}
    found = [
        solver.sample(kind(Field(schedule, view), schedule, label=lambda t: t), x_T).x for view, kind in kinds.items()
    ]
    for x in found[1:]:
        assert torch.allclose(x, found[0], rtol=1e-9, atol=1e-9)


class Pixels(Denoiser):
    """The mixture in every entry of an image, in the dtype it is asked in."""

    def forward(self, x_t, t, **condition):
        each = t.repeat_interleave(x_t[0].numel()) if isinstance(t, torch.Tensor) and t.ndim else t
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(
            x_t, alpha, sigma, eps=MIXTURE.denoiser(self.schedule)(x_t.reshape(-1, 1), each).eps.view(x_t.shape)
        )


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("solver", FIXED, ids=named)
def test_a_batch_of_images_equals_its_images_one_by_one(solver):
    model = Pixels(LINEAR)
    together = solver.sample(model, IMAGES).x
    for i in range(2):
        assert torch.allclose(solver.sample(model, IMAGES[i : i + 1]).x[0], together[i], rtol=0, atol=1e-13)
    entries = solver.sample(MIXTURE.denoiser(LINEAR), IMAGES.reshape(-1, 1)).x.view(IMAGES.shape)
    assert torch.allclose(entries, together, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", FIXED, ids=named)
def test_float32_agrees_with_float64(solver):
    single = solver.sample(Pixels(LINEAR), IMAGES.float()).x
    assert single.dtype == torch.float32
    assert (single - solver.sample(Pixels(LINEAR), IMAGES).x).abs().max() < 1e-4


@pytest.mark.parametrize("solver", ALL, ids=named)
def test_a_sample_depends_on_seed_and_index_alone(solver):
    model = MIXTURE.denoiser(LINEAR)
    whole = solver.sample(model, n=20, seed=3).x
    for batch in (1, 7, 20):
        parts = [solver.sample(model, seed=3, indices=range(i, min(i + batch, 20))).x for i in range(0, 20, batch)]
        assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-11)
    assert not torch.allclose(solver.sample(model, n=20, seed=4).x, whole)


@pytest.mark.parametrize("solver", ALL, ids=named)
def test_threads_may_share_a_solver(solver):
    model = MIXTURE.denoiser(LINEAR)
    alone = [solver.sample(model, n=8, seed=i).x for i in range(4)]
    found: list = [None] * 4

    def work(i):
        found[i] = solver.sample(model, n=8, seed=i).x

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, found))


@pytest.mark.parametrize("solver", [s for s in FIXED if s.row_wise], ids=named)
def test_rows_may_stand_at_different_levels(solver):
    model = Counting(MIXTURE.denoiser(LINEAR))
    run = solver.start(model, Noise.rows(0, 9))
    levels = run.plan.steps
    states = [LATENTS]
    for level in range(levels):
        states.append(solver.step(run, states[-1], level))
    level = torch.arange(9) % levels
    mixed = torch.stack([states[k][i] for i, k in enumerate(level.tolist())])
    before = model.calls
    given = mixed.clone()
    out = torch.empty_like(mixed)
    found = solver.step(run, mixed, level, out=out)
    assert found is out
    assert torch.equal(mixed, given)
    expected = torch.stack([states[k + 1][i] for i, k in enumerate(level.tolist())])
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)
    assert model.calls - before == max(solver.cost(k) for k in level.tolist())
    # only the rows that need a further answer are asked about again
    costs = [solver.cost(k) for k in level.tolist()]
    assert model.rows[before:] == [sum(c > stage for c in costs) for stage in range(max(costs))]


def test_rows_on_first_order_steps_cost_one_call():
    solver = DPMSolverFast(7)  # orders 3, 3, 1
    model = Counting(MIXTURE.denoiser(LINEAR))
    run = solver.start(model)
    solver.step(run, LATENTS, torch.full((9,), 2))
    assert model.calls == 1


@pytest.mark.parametrize("solver", ALL, ids=named)
def test_the_input_is_left_alone_and_two_runs_agree(solver):
    x_T, model = LATENTS.clone(), MIXTURE.denoiser(LINEAR)
    first = solver.sample(model, x_T).x
    assert torch.equal(x_T, LATENTS)
    assert torch.equal(solver.sample(model, x_T).x, first)


class Echo(Denoiser):
    """A network that hands back its own input as the answer, as identity networks do."""

    def __init__(self, view, copies):
        super().__init__(LINEAR)
        self.view, self.copies = view, copies

    def forward(self, x_t, t, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, **{self.view: x_t.clone() if self.copies else x_t})


@pytest.mark.parametrize("view", ["mean", "eps"])
@pytest.mark.parametrize("solver", ALL, ids=named)
def test_a_network_that_returns_its_input_does_no_harm(solver, view):
    found = [solver.sample(Echo(view, copies), LATENTS, seed=1).x for copies in (True, False)]
    assert torch.equal(*found)


class Operations(TorchDispatchMode):
    """Writes down every tensor operation."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("view", "operations"), [("mean", 3), ("eps", 4)])
def test_a_multistep_step_allocates_nothing_and_takes_few_passes(view, operations):
    class Free(Denoiser):
        def forward(self, x_t, t, **condition):
            return Posterior(x_t, *self.schedule.at(t), **{view: answer})

    answer = torch.randn(4, 3, 8, 8)
    solver, model = DPMSolverMultistep(10), Free(LINEAR)
    run, buffers = solver.start(model), set()
    solver.sample(model, torch.randn(4, 3, 8, 8))  # the schedule remembers the times it was asked for
    with torch.no_grad():
        solution = solver.solve(run, torch.randn(4, 3, 8, 8))
        for _ in range(4):
            buffers.add(next(solution)[1].data_ptr())
        with Operations() as seen:
            buffers.add(next(solution)[1].data_ptr())
    assert len(buffers) == 2
    assert len(seen.names) == operations
    assert all(name.endswith(".out") or "_." in name for name in seen.names), seen.names


def test_errors_do_not_depend_on_the_state_of_a_run():
    # a run that was used before gives the same result when started again at level 0
    solver, model = DPMSolverMultistep(6, order=3), MIXTURE.denoiser(LINEAR)
    run = solver.start(model)
    results = []
    for _ in range(2):
        x = LATENTS
        for level in range(6):
            x = solver.step(run, x, level)
        results.append(x)
    assert torch.equal(*results)


def test_given_times_are_the_grid():
    times = tuple(np.linspace(1.0, 1e-3, 21))
    a = errors(lambda n: DPMSolverMultistep(n, grid=Times(times)), [20])
    assert a == errors(lambda n: DPMSolverMultistep(n, grid="uniform"), [20])
