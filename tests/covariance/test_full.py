"""Full covariances: exact on correlated data, where no diagonal is."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from covariance.exact import LINEAR, node
from trueward.covariance import (
    FullAnalyticCovariance,
    FullTable,
    MatrixHead,
    NPRFullCovariance,
    estimate_full_covariance,
)
from trueward.full_covariance import FullCovariance
from trueward.objectives.moments import MomentMatching
from trueward.samplers import Ancestral
from trueward.schedules import VPLinear
from trueward.truth import Gaussian

CORRELATED = 0.25 * torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
TRUTH = Gaussian(torch.zeros(2), CORRELATED)


def exact_table(schedule, times):
    matrices = []
    for t in times:
        alpha, sigma = schedule.at(float(t))
        matrices.append(torch.linalg.inv(alpha**2 * CORRELATED + sigma**2 * torch.eye(2)) @ CORRELATED * alpha**2)
    return FullTable(schedule, np.asarray(times), torch.stack(matrices))


def covariance_after(sampler, model):
    """The exact covariance at the cleanest level: every step is linear in x."""
    run = sampler.start(model)
    alpha, sigma = run.plan.levels.alpha[0], run.plan.levels.sigma[0]
    law = alpha**2 * CORRELATED + sigma**2 * torch.eye(2)
    basis = torch.eye(2, dtype=torch.float64)
    for level in range(run.plan.steps - 1):
        mean, std = sampler.transition(run, basis, level)
        noise = (std @ basis).T if isinstance(std, FullCovariance) else torch.diag(std[0])
        law = mean.T @ law @ mean + noise @ noise.T
    alpha, sigma = run.plan.levels.alpha[-2], run.plan.levels.sigma[-2]
    return law, alpha**2 * CORRELATED + sigma**2 * torch.eye(2)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_full_form_is_exact_on_correlated_gaussians_and_the_diagonal_is_not(eta):
    times = [node(n) for n in (1, 250, 500, 750, 1000)]
    from trueward.times import Times

    sampler = Ancestral(5, eta=eta, variance="posterior", grid=Times(times[::-1]))
    full = FullAnalyticCovariance(TRUTH.denoiser(LINEAR), exact_table(LINEAR, times))
    got, wanted = covariance_after(sampler, full)
    assert (got - wanted).abs().max().item() < 1e-9
    got, _ = covariance_after(sampler, TRUTH.denoiser(LINEAR, covariance="diagonal"))
    assert (got - wanted).abs().max().item() > 1e-2


def test_sampled_covariances_agree():
    times = [node(n) for n in (1, 334, 667, 1000)]
    full = FullAnalyticCovariance(TRUTH.denoiser(LINEAR), exact_table(LINEAR, times))
    from trueward.times import Times

    x = Ancestral(4, variance="analytic-full", grid=Times(times[::-1])).sample(full, n=50_000).x
    lost = exact_table(LINEAR, times[:1]).matrices[0] * (LINEAR.at(node(1))[1]) ** 2
    error = 4.5 * 0.25 * math.sqrt(2 / 50_000)  # false alarm below 3e-5
    assert (torch.cov(x.T) - (CORRELATED - lost)).abs().max().item() < error


@pytest.mark.parametrize("form", ["residual", "moment"])
def test_the_matrices_are_measured_within_their_error(form):
    times = [node(n) for n in (50, 300, 800)]
    data = TRUTH.sample(20_000, torch.Generator().manual_seed(0))
    table = estimate_full_covariance(
        TRUTH.denoiser(LINEAR), data, num_samples=20_000, times=times, form=form, batch_size=20_000
    )
    assert (table.matrices - exact_table(LINEAR, times).matrices).abs().max().item() < 5 * math.sqrt(2 / 20_000)


def test_rows_may_stand_at_different_levels_and_times_between_are_interpolated():
    times = np.linspace(0.1, 1.0, 400)
    schedule = VPLinear()
    model = FullAnalyticCovariance(TRUTH.denoiser(schedule), exact_table(schedule, times))
    x = torch.randn(3, 2, dtype=torch.float64)
    t = torch.tensor([0.123, 0.5, 0.987], dtype=torch.float64)
    var = model(x, t).var
    for row in range(3):
        exact = TRUTH.posterior_covariance(x[row : row + 1], schedule, t[row].item())[0]
        assert torch.allclose(var.matrix[row], exact, atol=1e-4)
        assert torch.allclose(model(x, t[row].item()).var.matrix[0], var.matrix[row])
    with pytest.raises(ValueError, match="cover"):
        model(x, 0.05)


def test_the_pieces_of_a_full_covariance():
    torch.manual_seed(0)
    root = torch.randn(4, 3, 3, dtype=torch.float64)
    matrix = root @ root.mT
    full, x = FullCovariance.of(matrix), torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(full.matrix, matrix)
    assert torch.allclose(full.diagonal, matrix.diagonal(dim1=1, dim2=2))
    assert torch.allclose(full @ x, torch.einsum("bij,bj->bi", matrix, x))
    assert torch.allclose((full * 2.0 + 0.5).matrix, 2 * matrix + 0.5 * torch.eye(3))
    row = torch.arange(1.0, 5.0).double().view(4, 1)
    assert torch.allclose((full * row).matrix, matrix * row.view(4, 1, 1))
    assert torch.allclose((0.5 + 2.0 * full).matrix, 2 * matrix + 0.5 * torch.eye(3))
    assert torch.allclose(full.sqrt().matrix @ full.sqrt().matrix, matrix)
    assert full.clamp(max=0.5).values.max() <= 0.5
    assert torch.allclose(full.clamp(min=row).values.min(1).values, torch.maximum(full.values.min(1).values, row[:, 0]))
    images = FullCovariance.of(matrix) @ x.view(4, 1, 3)
    assert images.shape == (4, 1, 3)
    with pytest.raises(ValueError, match="one number per row"):
        _ = full * torch.ones(4, 3)


def test_256_dimensions_work_and_257_are_refused():
    class Zero(torch.nn.Module):
        def forward(self, x, label):
            return 0.1 * x

    from trueward.denoisers import denoiser

    model = denoiser(Zero(), LINEAR, "eps", shape=(1, 16, 16))
    table = estimate_full_covariance(model, torch.randn(300, 1, 16, 16), num_samples=300, times=[0.001, 0.5, 1.0])
    from trueward.times import Times

    d = FullAnalyticCovariance(model, table)
    x = Ancestral(3, eta=0.0, variance="analytic-full", grid=Times([1.0, 0.5, 0.001])).sample(d, n=2).x
    assert x.isfinite().all()
    assert x.shape == (2, 1, 16, 16)
    with pytest.raises(ValueError, match="up to 256"):
        estimate_full_covariance(model, torch.randn(10, 257), num_samples=10)


@pytest.mark.slow
def test_a_matrix_head_learns_the_covariance_of_the_residual():
    """A mean that is wrong by a factor; the head must find E[residual residual^T | x], seen at x = 0 and far out."""
    torch.manual_seed(0)
    inner = TRUTH.denoiser(LINEAR)
    d = NPRFullCovariance(inner, MatrixHead(4, 2, width=32, blocks=1), feature_layer="inputs")
    fitted = torch.optim.Adam(d.head.parameters(), lr=3e-3)
    generator, objective = torch.Generator().manual_seed(0), MomentMatching()
    before = copy.deepcopy(inner.state_dict())
    for _ in range(250):
        loss = objective(d, {"x": TRUTH.sample(512, generator)}, generator).mean()
        fitted.zero_grad()
        loss.backward()
        fitted.step()
    assert all(torch.equal(v, before[k]) for k, v in inner.state_dict().items())
    x = torch.zeros(1, 2, dtype=torch.float64)
    exact = TRUTH.posterior_covariance(x, LINEAR, node(300))[0]
    got = d.eval()(x, node(300)).var.matrix[0].detach()
    assert (got - exact).abs().max().item() < 0.35 * exact.abs().max().item()
    assert Ancestral(4, variance="npr-full").sample(d, n=3).x.isfinite().all()
