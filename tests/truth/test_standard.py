"""The ready-made truths are what their names say."""

from __future__ import annotations

import math

import pytest
import torch
from truth_cases import generator

from trueward.truth import bimodal, grid_of_gaussians, point_masses


def test_grid_has_equal_modes_at_the_nodes_of_a_square() -> None:
    truth = grid_of_gaussians(side=5, spacing=2.0, std=0.05)
    assert truth.components == 25
    assert sorted(map(tuple, truth.means.tolist())) == [(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)]
    torch.testing.assert_close(truth.covariance, torch.eye(2, dtype=torch.float64) * (8.0 + 0.05**2))
    peak = truth.log_prob(truth.means)
    torch.testing.assert_close(peak, torch.full((25,), -math.log(25 * 2 * math.pi * 0.05**2), dtype=torch.float64))


def test_bimodal_has_the_stated_moments() -> None:
    truth = bimodal()
    mean = 0.3 * -0.8 + 0.7 * 0.5
    assert truth.mean.item() == pytest.approx(mean)
    assert truth.variance.item() == pytest.approx(0.3 * (0.04 + 0.64) + 0.7 * (0.09 + 0.25) - mean**2)


def test_point_masses_sample_only_their_points_with_their_weights() -> None:
    points = torch.tensor([[[1.0, 2.0]], [[-1.0, 0.0]]], dtype=torch.float64)
    truth = point_masses(points, weights=[0.25, 0.75])
    x, component = truth.draw(4000, generator())
    torch.testing.assert_close(x, points[component])
    assert abs(component.double().mean().item() - 0.75) < 5 * math.sqrt(0.25 * 0.75 / 4000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grid_of_gaussians(side=0), "side must be at least 1, got 0"),
        (lambda: grid_of_gaussians(spacing=-1.0), "spacing must be positive"),
        (lambda: point_masses(torch.zeros(0, 2)), "points must be"),
    ],
)
def test_impossible_standard_truths_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
