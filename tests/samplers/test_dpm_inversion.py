"""From data to noise: the latent is found to the order of the solver, and the way back leads home."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dpm_cases import DATA, LATENTS, LINEAR, MIXTURE, T_END, slopes

from trueward.samplers import DPMSolverMultistep, DPMSolverSDE, DPMSolverSinglestep
from trueward.times import Times

STEPS = (20, 40, 80, 160)


@pytest.mark.parametrize(
    ("solver", "latent", "round_trip"),
    [
        (DPMSolverMultistep(20, algorithm="noise"), (3.1e-2, 7.7e-3, 1.9e-3, 4.6e-4), (3.0e-2, 5.5e-3, 7.7e-4, 9.9e-5)),
        (
            DPMSolverSinglestep(20, order=3, algorithm="noise"),
            (6.2e-4, 7.2e-5, 9.5e-6, 1.2e-6),
            (1.4e-3, 1.9e-4, 2.4e-5, 3.0e-6),
        ),
        (DPMSolverMultistep(20, algorithm="data"), (4.4e-2, 1.2e-2, 3.1e-3, 8.0e-4), None),
        (DPMSolverSinglestep(20, order=3, algorithm="data"), (1.6e-3, 1.8e-4, 2.2e-5, 2.6e-6), None),
    ],
    ids=["2M-noise", "3S-noise", "2M-data", "3S-data"],
)
def test_inversion_finds_the_latent_and_comes_back(solver, latent, round_trip):
    model, exact = MIXTURE.denoiser(LINEAR), MIXTURE.flow(DATA, LINEAR, T_END, 1.0)
    found, back = [], []
    for n in STEPS:
        sampler = dataclasses.replace(solver, steps=n)
        inverted = sampler.invert(model, DATA)
        assert inverted.nfe == sampler.nfe(LINEAR)
        found.append((inverted.x - exact).abs().max().item())
        back.append((sampler.sample(model, inverted.x).x - DATA).abs().max().item())
    assert found == pytest.approx(latent, rel=0.07)
    if round_trip is not None:
        assert back == pytest.approx(round_trip, rel=0.07)
        assert slopes(np.array(back))[-1] == pytest.approx(3.0, abs=0.15)


def test_inversion_walks_the_same_levels_backwards():
    for grid in ("log-snr", "uniform", "quadratic", "karras", Times([1.0, 0.6, 0.3, 0.1, 0.02, 1e-3])):
        solver = DPMSolverMultistep(5, grid=grid, order=1)
        there = solver.sample(MIXTURE.denoiser(LINEAR), LATENTS, trajectory=True)
        back = solver.invert(MIXTURE.denoiser(LINEAR), there.x, trajectory=True)
        assert np.allclose(there.times, back.times[::-1], rtol=1e-12)


def test_what_cannot_be_inverted_says_so():
    model = MIXTURE.denoiser(LINEAR)
    with pytest.raises(ValueError, match="thresholding cannot be inverted"):
        DPMSolverMultistep(5, thresholding="dynamic").invert(model, DATA)
    with pytest.raises(ValueError, match="no inverse"):
        DPMSolverSDE(5).invert(model, DATA)
