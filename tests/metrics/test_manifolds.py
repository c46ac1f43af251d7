"""Precision, recall, density and coverage on sets whose answers are counted by hand, and against a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from trueward.metrics import density_coverage, interval, neighbours, precision_recall


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(g: np.ndarray, r: np.ndarray, k: int) -> dict[str, float]:
    """The definitions, with scikit-learn's neighbours and full matrices."""

    def radii(x: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k]

    distance = np.linalg.norm(g[:, None] - r[None], axis=2)
    in_r, in_g = distance <= radii(r)[None], distance <= radii(g)[:, None]
    return {
        "precision": in_r.any(1).mean(),
        "recall": in_g.any(0).mean(),
        "density": in_r.sum(1).mean() / k,
        "coverage": in_r.any(0).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [10, 1000, 2**23])
def test_all_four_are_those_of_the_definition_in_blocks_of_any_size(k, block, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    g, r = normal(70, 4, 1) * 0.8 + 0.3, normal(90, 4, 2)
    expected = by_hand(g.numpy(), r.numpy(), k)
    found = {**precision_recall(g, r, k, groups=0)._asdict(), **density_coverage(g, r, k, groups=0)._asdict()}
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-12), name


def test_a_line_is_counted_by_hand():
    # reference 0, 1, 2, 10 with k = 1: balls of radius 1, 1, 1, 8; samples 0.5, 1.5, 11, 30 with balls of radius 1, 1, 9.5, 19
    r = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    g = torch.tensor([[0.5], [1.5], [11.0], [30.0]])
    precision, recall = precision_recall(g, r, k=1)
    assert precision.value == 3 / 4  # 30 is beyond all balls
    assert recall.value == 1.0  # 0 and 1 lie in the ball of 0.5, 2 in that of 1.5, 10 in that of 11
    density, coverage = density_coverage(g, r, k=1)
    assert density.value == (2 + 2 + 1 + 0) / 4  # 0.5 in the balls of 0, 1; 1.5 of 1, 2; 11 of 10
    assert coverage.value == 1.0
    assert precision.standard_error is None  # four points are too few for the jackknife


def test_mode_collapse_keeps_precision_and_loses_recall_and_coverage():
    r = torch.cat([normal(200, 2, 1) - 20, normal(200, 2, 2) + 20])
    g = normal(400, 2, 3) - 20
    precision, recall = precision_recall(g, r)
    _, coverage = density_coverage(g, r)
    assert precision.value > 0.85
    assert recall.value <= 0.5
    assert coverage.value <= 0.5


def test_samples_far_away_score_nothing_and_the_reference_itself_everything():
    r = normal(100, 3)
    far, same = r + 1000.0, r.clone()
    assert [e.value for e in (*precision_recall(far, r), *density_coverage(far, r))] == [0, 0, 0, 0]
    assert [e.value for e in precision_recall(same, r)] == [1, 1]
    assert density_coverage(same, r).coverage.value == 1


def test_density_and_coverage_of_equal_distributions_are_what_theory_expects():
    # density has mean 1 and coverage 1 - 2^-k in the limit; at n = 2000 both are known to about 1 % and 0.5 %
    density, coverage = density_coverage(normal(2000, 3, 1), normal(2000, 3, 2), k=5)
    assert density.value == pytest.approx(1.0, abs=0.05)
    assert coverage.value == pytest.approx(1 - 2**-5, abs=0.015)


def test_a_point_of_the_reference_is_in_the_ball_of_its_neighbour_despite_rounding():
    # one neighbour at exactly the radius, far from the origin, in float32
    r = (normal(200, 16) + 1e3).float()
    shifted = torch.cat([r, r])
    precision, recall = precision_recall(shifted, r, k=1)
    assert precision.value == 1.0
    assert recall.value == 1.0


@pytest.mark.parametrize("metric", [precision_recall, density_coverage])
@pytest.mark.parametrize("part", [0, 1])
def test_the_standard_error_is_the_jackknife_over_both_sets(metric, part):
    g, r = normal(200, 4, 1) * 1.2, normal(260, 4, 2)
    found = metric(g, r)[part]
    general = interval(lambda a, b: metric(a, b, groups=0)[part], g, r, groups=10)
    assert found.value == general.value
    assert found.standard_error == pytest.approx(general.standard_error, rel=1e-9)


def test_radii_without_a_group_are_those_of_the_rest():
    x = normal(60, 3)
    group = torch.arange(50)  # so large that most neighbours are in it
    radii = neighbours.squared_radii(x, 3, [group])
    alone = neighbours.squared_radii(x[50:], 3)
    assert torch.allclose(radii[1, 50:], alone[0])
    assert bool((radii[1, :50] == -1).all())


@pytest.mark.parametrize("metric", [precision_recall, density_coverage])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((normal(5, 2), normal(9, 2), 9), "k=9"),
        ((normal(20, 2), normal(20, 2), 0), "at least 1"),
        ((normal(20, 2), normal(20, 3), 1), "cannot be compared"),
        ((normal(20, 2) / 0, normal(20, 2), 1), "finite"),
        ((normal(1, 2), normal(20, 2), 1), "at least 2"),
        ((normal(20, 2)[:, 0], normal(20, 2)[:, 0], 1), "two axes"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(metric, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric(*arguments)
