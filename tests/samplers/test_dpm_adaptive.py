"""Adaptive steps: tolerances are kept, the count is honest, both directions end, and neighbours do not matter."""

from __future__ import annotations

import pytest
import torch
from dpm_cases import DATA, LATENTS, LINEAR, MIXTURE, T_END, Counting, OfTime, gaussian

from trueward.denoisers import Denoiser, Posterior
from trueward.samplers import DPMSolverAdaptive
from trueward.schedules import EDM, VE, DiscreteSchedule, VPCosine
from trueward.truth import GaussianMixture

FORMS = ("noise", "data")
TOLERANCES = ((0.05, 0.0078, 0.1), (1e-3, 1e-4, 2e-3), (1e-5, 1e-6, 1e-4))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [2, 3])
def test_the_error_follows_the_tolerance_in_both_directions(order, form):
    model = MIXTURE.denoiser(LINEAR)
    data = MIXTURE.flow(LATENTS, LINEAR, 1.0, T_END)
    latent = MIXTURE.flow(DATA, LINEAR, T_END, 1.0)
    for rtol, atol, bound in TOLERANCES:
        for per_sample in (False, True):
            if per_sample and rtol == 1e-5 and order == 2:
                continue  # a thousand small steps that prove nothing new
            solver = DPMSolverAdaptive(order=order, algorithm=form, rtol=rtol, atol=atol, per_sample=per_sample)
            # one error for the batch is its largest; a sample alone has no neighbour to warn it
            allowed = bound if not per_sample else 2.5 * bound
            there = solver.sample(model, LATENTS)
            assert (there.x - data).abs().max() <= allowed
            back = solver.invert(model, DATA)
            assert (back.x - latent).abs().max() <= allowed


@pytest.mark.parametrize("form", FORMS)
def test_order_three_needs_far_fewer_calls_at_tight_tolerance(form):
    model = MIXTURE.denoiser(LINEAR)
    calls = [
        DPMSolverAdaptive(order=k, algorithm=form, rtol=1e-5, atol=1e-6, per_sample=False).sample(model, LATENTS).nfe
        for k in (2, 3)
    ]
    assert calls[0] > 2 * calls[1]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("order", [2, 3])
def test_the_count_is_the_calls_made_and_a_rejection_saves_one(order, per_sample):
    model = Counting(MIXTURE.denoiser(LINEAR))
    found = DPMSolverAdaptive(order=order, per_sample=per_sample).sample(model, LATENTS)
    assert found.nfe == model.calls
    assert found.rejected > 0
    if not per_sample:
        assert found.nfe == order * found.accepted + (order - 1) * found.rejected


def test_the_time_reached_is_the_end():
    for schedule in (LINEAR, VPCosine(), VE(), EDM(), DiscreteSchedule.linear(), DiscreteSchedule.cosine()):
        model = MIXTURE.denoiser(schedule)
        x_T = LATENTS * schedule.prior_std().item()
        for per_sample in (False, True):
            solver = DPMSolverAdaptive(rtol=1e-3, atol=1e-4, per_sample=per_sample)
            found = solver.sample(model, x_T, trajectory=True)
            assert found.times[-1] == schedule.t_min
            exact = MIXTURE.flow(x_T, schedule, schedule.t_max, schedule.t_min)
            assert (found.x - exact).abs().max() <= 5e-3
            cleaned = DPMSolverAdaptive(rtol=1e-3, atol=1e-4, per_sample=per_sample, denoise_to_zero=True)
            last = cleaned.sample(model, x_T)
            assert torch.allclose(last.x, model(found.x, schedule.t_min).mean, rtol=0, atol=1e-12)
            assert last.nfe == found.nfe + 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [2, 3])
def test_a_constant_answer_has_no_error_and_is_done_in_a_few_steps(order, form):
    # 0.5 is exact in binary, so the two solutions may agree to the last bit: err = 0 must not divide by zero
    for value in (0.0, 0.5):
        model = OfTime(lambda lam: torch.full_like(lam, value), form)  # noqa: B023
        found = DPMSolverAdaptive(order=order, algorithm=form, per_sample=False).sample(model, LATENTS)
        assert 2 <= found.accepted <= 3
        assert found.rejected == 0
        assert found.x.isfinite().all()


@pytest.mark.parametrize("order", [2, 3])
def test_a_sample_does_not_depend_on_its_neighbours(order):
    model = MIXTURE.denoiser(LINEAR)
    solver = DPMSolverAdaptive(order=order)
    together = solver.sample(model, LATENTS).x
    alone = torch.cat([solver.sample(model, x[None]).x for x in LATENTS])
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)
    shared = DPMSolverAdaptive(order=order, per_sample=False)
    assert not torch.allclose(shared.sample(model, LATENTS).x, shared.sample(model, LATENTS[:3]).x[:1], atol=1e-6)


def test_conditions_travel_with_their_rows():
    truth = GaussianMixture([0.5, 0.5], [[-2.0], [1.0]], [0.01, 0.04])
    model = truth.denoiser(LINEAR, classes=[0, 1])
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1])
    x = DPMSolverAdaptive(rtol=1e-3, atol=1e-4).sample(model, LATENTS, class_labels=labels).x[:, 0]
    assert ((x < -1) == (labels == 0)).all()


def test_finished_rows_leave_the_batch():
    model = Counting(MIXTURE.denoiser(LINEAR))
    DPMSolverAdaptive().sample(model, LATENTS)
    assert model.rows[0] == len(LATENTS)
    assert model.rows[-1] < len(LATENTS)


@pytest.mark.parametrize("per_sample", [False, True])
def test_too_few_evaluations_are_a_clear_error(per_sample):
    solver = DPMSolverAdaptive(max_nfe=20, per_sample=per_sample)
    model = Counting(MIXTURE.denoiser(LINEAR))
    with pytest.raises(ValueError, match="max_nfe=20 evaluations were not enough: 9 samples had not arrived"):
        solver.sample(model, LATENTS)
    assert model.calls <= 20


def test_callback_and_trajectory_see_every_accepted_step():
    seen = []
    solver = DPMSolverAdaptive(per_sample=False)
    found = solver.sample(MIXTURE.denoiser(LINEAR), LATENTS, callback=seen.append, trajectory=True)
    assert len(seen) == found.accepted
    assert len(found.trajectory) == found.accepted + 1
    assert seen[-1].nfe == found.nfe
    assert seen[0].steps is None
    assert all(a > b for a, b in zip(found.times, found.times[1:]))
    rows = DPMSolverAdaptive().sample(MIXTURE.denoiser(LINEAR), LATENTS, trajectory=True)
    assert rows.times[1].shape == (len(LATENTS),)


def test_it_has_no_levels():
    solver = DPMSolverAdaptive()
    assert solver.nfe(LINEAR) is None
    with pytest.raises(ValueError, match="no levels"):
        solver.step(solver.start(MIXTURE.denoiser(LINEAR)), LATENTS, 0)
    with pytest.raises(ValueError, match="no levels"):
        solver.cost(0)


def test_images_in_float32_and_an_input_left_alone():
    truth = gaussian(0.2, 0.5)

    class Images(Denoiser):
        def forward(self, x_t, t, **condition):
            alpha, sigma = self.schedule.coefficients(t, x_t)
            mean = truth.denoiser(self.schedule)(x_t.reshape(-1, 1), self._each(t, x_t)).mean.view(x_t.shape)
            return Posterior(x_t, alpha, sigma, mean=mean)

        def _each(self, t, x):
            return t.repeat_interleave(x[0].numel()) if isinstance(t, torch.Tensor) and t.ndim else t

    x_T = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    before = x_T.clone()
    exact = truth.flow(x_T.double().reshape(-1, 1), LINEAR, 1.0, T_END).view(x_T.shape)
    for per_sample in (False, True):
        x = DPMSolverAdaptive(rtol=1e-4, atol=1e-4, per_sample=per_sample).sample(Images(LINEAR), x_T).x
        assert x.dtype == torch.float32
        assert (x - exact).abs().max() < 2e-3
    assert torch.equal(x_T, before)
