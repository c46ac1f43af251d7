"""Thresholding brings the predicted data back into their range, sample by sample."""

from __future__ import annotations

import pytest
import torch
from dpm_cases import LINEAR, gaussian

from trueward.denoisers import Denoiser, Posterior
from trueward.samplers import DPMSolverAdaptive, DPMSolverMultistep, DPMSolverSinglestep
from trueward.samplers.thresholding import DynamicThresholding, StaticThresholding, upper_quantile

X_0 = torch.tensor([[0, 0.5, -1.5, 3, -0.2], [0.1, 0.2, 0.3, -0.4, 0.5]], dtype=torch.float64)
RANGE = (-1.0, 1.0)


def test_dynamic_thresholding_divides_by_the_quantile():
    assert upper_quantile(X_0.abs(), 0.995).tolist() == pytest.approx([2.97, 0.498])
    found = DynamicThresholding()(X_0, RANGE)
    assert found[0].tolist() == pytest.approx([0, 0.168350, -0.505051, 1, -0.067340], abs=1e-6)
    assert torch.equal(found[1], X_0[1])


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.75, 0.995, 1.0])
def test_the_quantile_is_the_linearly_interpolated_one(p):
    values = torch.rand(7, 301, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(upper_quantile(values, p), torch.quantile(values, p, dim=1), rtol=1e-12)


def test_the_result_lies_in_the_range_whatever_max_value_is():
    x = 10 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for low, high in (RANGE, (0.0, 1.0), (-2.0, 5.0)):
        for max_value in (0.5, 1.0, 3.0):
            y = DynamicThresholding(max_value=max_value)(x, (low, high))
            assert y.min() >= low - 1e-5
            assert y.max() <= high + 1e-5
        assert torch.equal(StaticThresholding()(x, (low, high)), x.clamp(low, high))


def test_a_sample_is_thresholded_by_itself():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1, 2, 3, 9])[:, None]
    rule = DynamicThresholding(0.9)
    assert torch.equal(rule(x, RANGE), torch.cat([rule(row[None], RANGE) for row in x]))


class TooLarge(Denoiser):
    """Predicts data outside of their range, as strong guidance does."""

    def forward(self, x_t, t, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, mean=3.0 * torch.tanh(x_t))


@pytest.mark.parametrize("rule", ["static", "dynamic"])
@pytest.mark.parametrize("solver", [DPMSolverMultistep, DPMSolverSinglestep, DPMSolverAdaptive])
def test_solvers_in_data_form_threshold_every_answer(solver, rule):
    model = TooLarge(LINEAR, shape=(16,), data_range=RANGE)
    free = solver(steps=10, denoise_to_zero=True).sample(model, n=4).x
    kept = solver(steps=10, thresholding=rule, denoise_to_zero=True).sample(model, n=4).x
    assert free.abs().max() > 2.5
    assert kept.abs().max() <= 1.0 + 1e-6
    # without the last step the state is alpha x_0 plus a little noise: inside too
    assert solver(steps=10, thresholding=rule).sample(model, n=4).x.abs().max() <= 1.2


def test_thresholding_at_rest_changes_nothing():
    model = gaussian(0.0, 0.04).denoiser(LINEAR)
    model.data_range = (-50.0, 50.0)
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    plain = DPMSolverMultistep(10).sample(model, x_T).x
    for rule in ("static", "dynamic"):
        assert torch.allclose(DPMSolverMultistep(10, thresholding=rule).sample(model, x_T).x, plain, rtol=0, atol=1e-13)


def test_data_without_a_range_cannot_be_thresholded():
    with pytest.raises(ValueError, match="needs bounded data"):
        DPMSolverMultistep(5, thresholding="dynamic").sample(gaussian(0, 1).denoiser(LINEAR), n=3)


@pytest.mark.parametrize("options", [{"quantile": 0.0}, {"quantile": 1.1}, {"max_value": 0.0}])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DynamicThresholding(**options)
