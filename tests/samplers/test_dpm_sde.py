"""DPM-Solver++ for the reverse SDE."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from dpm_cases import LINEAR, MIXTURE, T_END, gaussian, slopes

from trueward.samplers import Ancestral, DPMSolverSDE, dpm_multistep
from trueward.samplers.exponential import first_order, sde_interval, sde_std
from trueward.times import Levels, Times, UniformLogSNR


def test_the_sde_of_order_one_is_ancestral_sampling():
    model = MIXTURE.denoiser(LINEAR)
    times = UniformLogSNR()(LINEAR, 12)
    ours = DPMSolverSDE(12, order=1, denoise_to_zero=True).sample(model, n=64, seed=5)
    theirs = Ancestral(13, grid=Times(times), variance="beta-tilde", clip=False).sample(model, n=64, seed=5)
    assert torch.allclose(ours.x, theirs.x, rtol=0, atol=1e-12)
    assert ours.nfe == theirs.nfe == 13


@pytest.mark.parametrize("order", [1, 2])
def test_the_sde_samples_the_data(order):
    # 4000 samples: mean and std have standard errors below 0.011 and 0.007; five of them are exceeded with probability 1e-6
    model = MIXTURE.denoiser(LINEAR)
    steps = {1: 150, 2: 40}[order]
    x = DPMSolverSDE(steps, order=order, denoise_to_zero=True).sample(model, n=4000, seed=1).x
    assert x.mean().item() == pytest.approx(MIXTURE.mean.item(), abs=0.055 + 2e-3)
    assert x.std().item() == pytest.approx(math.sqrt(MIXTURE.variance.item()), abs=0.035 + 5e-3)


def carried_variance(solver):
    """Variance of the sampler's output for data N(0, 1/4), exactly: the steps are linear in x and the noises."""
    model, plan = gaussian(0.0, 0.25).denoiser(LINEAR), solver.plan(LINEAR)
    run = solver.start(model)
    # row 0 carries the factor of x_T, row k + 1 the factor of the noise of step k
    n = solver.steps
    x = torch.zeros(n + 1, 1, dtype=torch.float64)
    x[0] = 1.0
    for level in range(n):
        noiseless = dataclasses.replace(plan, std=(0.0,) * len(plan.std))
        run.plan = noiseless
        x = solver.step(run, x, level)
        x[level + 1] += plan.std[level]
    return x.square().sum().item()


def test_the_sde_of_order_two_is_of_second_order_in_the_variance():
    exact = LINEAR.at(T_END)[0] ** 2 * 0.25 + LINEAR.at(T_END)[1] ** 2
    # x_T has variance one instead of v_T; the difference is forgotten
    for order in (1, 2):
        error = [abs(carried_variance(DPMSolverSDE(n, order=order)) - exact) for n in (40, 80, 160, 320)]
        found = slopes(np.array(error))
        assert found[-1] > order - 0.15


def test_noise_missing_from_the_sde_is_caught(plant):
    plant(dpm_multistep, "sde_std", lambda s, t: np.zeros(len(s)))
    x = DPMSolverSDE(60, denoise_to_zero=True).sample(gaussian(0.0, 0.25).denoiser(LINEAR), n=4000).x
    assert x.std().item() < 0.4


def test_the_interval_of_the_sde_is_the_papers():
    s, t = (Levels.of(LINEAR, np.array([v])) for v in (0.7, 0.4))
    h = (t.half_log_snr - s.half_log_snr).item()
    step = sde_interval(s, t)
    of_x, of_m = first_order(step)
    assert of_x.item() == pytest.approx(t.sigma.item() / s.sigma.item() * math.exp(-h), rel=1e-12)
    assert of_m.item() == pytest.approx(t.alpha.item() * (1 - math.exp(-2 * h)), rel=1e-12)
    assert sde_std(s, t).item() == pytest.approx(t.sigma.item() * math.sqrt(1 - math.exp(-2 * h)), rel=1e-12)
