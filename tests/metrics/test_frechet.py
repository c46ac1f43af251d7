"""The Frechet distance against closed forms, scipy's matrix root and itself in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gather import gather, points

from trueward.data import Dataset, load_data
from trueward.metrics import (
    FrechetStatistics,
    frechet_distance,
    frechet_infinity,
    frechet_of_moments,
    frechet_with_error,
    interval,
)


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d: int, rank: int, seed: int) -> torch.Tensor:
    factor = normal(d, rank, seed)
    return factor @ factor.T


def whitened(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Points whose sample mean is exactly 0 and whose sample covariance is exactly the identity."""
    x = normal(n, d, seed)
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T


def test_gaussians_with_commuting_covariances_have_their_closed_form():
    a, b = torch.tensor([1.0, 4.0, 0.25]), torch.tensor([9.0, 1.0, 0.0])
    basis = torch.linalg.qr(normal(3, 3)).Q
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    expected = shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    turned = [basis @ torch.diag(c.double()) @ basis.T for c in (a, b)]
    found = frechet_of_moments(torch.zeros(3), turned[0], shift, turned[1])
    assert found == pytest.approx(float(expected), abs=1e-12)


def test_samples_with_known_moments_have_their_closed_form():
    x = whitened(500, 4)
    scale, shift = torch.tensor([0.5, 1.0, 2.0, 3.0]).double(), torch.tensor([1.0, 0.0, 0.0, -1.0]).double()
    expected = float((scale - 1).square().sum() + shift.square().sum())
    assert frechet_distance(x * scale + shift, x) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("d", "rank"), [(5, 8), (20, 40), (64, 100)])
def test_full_covariances_agree_with_the_matrix_root_of_scipy(d, rank):
    from scipy.linalg import sqrtm

    c1, c2 = covariance(d, rank, 1), covariance(d, rank, 2)
    m1, m2 = normal(2, d, 3)
    root = sqrtm((c1 @ c2).numpy())
    expected = float((m1 - m2).square().sum() + c1.trace() + c2.trace()) - 2 * np.trace(root).real
    assert frechet_of_moments(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-9)


def test_covariances_without_full_rank_are_exact():
    # on disjoint axes the cross term vanishes; on one shared line it is the product of the deviations
    d = 50
    first, second = torch.zeros(d, d), torch.zeros(d, d)
    first[:3, :3], second[3:6, 3:6] = torch.eye(3), 4 * torch.eye(3)
    zero = torch.zeros(d)
    assert frechet_of_moments(zero, first, zero, second) == pytest.approx(15.0, abs=1e-12)
    line = normal(d, 1)[:, 0]
    line /= line.norm()
    outer = torch.outer(line, line)
    assert frechet_of_moments(zero, 9 * outer, zero, 4 * outer) == pytest.approx(1.0, abs=1e-10)


def test_fewer_samples_than_dimensions_give_a_real_distance_and_zero_to_themselves():
    x = normal(10, 100)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(x, x + 1.0) == pytest.approx(100.0, abs=1e-8)


def test_the_distance_is_symmetric_and_unchanged_by_rotation():
    x, y = normal(80, 6, 1), normal(90, 6, 2) * 2 + 1
    basis = torch.linalg.qr(normal(6, 6, 3)).Q
    value = frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-10)
    assert frechet_distance(x @ basis, y @ basis) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (33, 33, 34), tuple([1] * 100)])
def test_statistics_in_pieces_are_those_of_the_whole(sizes):
    # a mean of 1e6 leaves no digit to a sum of squares: only centred merging survives
    x = normal(100, 5) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) + 1e6
    found = FrechetStatistics()
    for part in x.split(list(sizes)):
        found.update(part)
    assert found.n == 100
    assert torch.allclose(found.mean, x.mean(0), rtol=1e-14)
    assert torch.allclose(found.covariance, torch.cov(x.T), rtol=1e-7)


def test_merging_with_empty_statistics_changes_nothing_and_copies():
    part = FrechetStatistics().update(normal(10, 3))
    total = FrechetStatistics().merge(part).merge(FrechetStatistics())
    total.update(normal(5, 3, 1))
    assert part.n == 10
    assert torch.equal(part.mean, normal(10, 3).mean(0))


def test_statistics_are_stored_exactly(tmp_path):
    found = FrechetStatistics("some features").update(normal(20, 4))
    path = found.save(tmp_path / "deep" / "stats")
    again = FrechetStatistics.load(path)
    assert (again.n, again.features) == (20, "some features")
    assert torch.equal(again.mean, found.mean)
    assert torch.equal(again.scatter, found.scatter)
    assert [p.name for p in path.parent.iterdir()] == ["stats.safetensors"]


def test_damaged_foreign_and_missing_statistics_are_named(tmp_path):
    path = FrechetStatistics().update(normal(20, 4)).save(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:-50])
    (tmp_path / "b.safetensors").write_bytes(b"not at all")
    for name in ("a", "b", "c"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors"):
            FrechetStatistics.load(tmp_path / name)


def test_processes_gather_what_one_would(tmp_path):
    torch.multiprocessing.spawn(gather, (3, str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=3)
    whole = FrechetStatistics().update(points())
    for rank in range(3):
        found = FrechetStatistics.load(tmp_path / str(rank))
        assert found.n == 100
        assert torch.allclose(found.mean, whole.mean, rtol=1e-13)
        assert torch.allclose(found.covariance, whole.covariance, rtol=1e-10)


def test_alone_all_reduce_changes_nothing():
    found = FrechetStatistics().update(normal(10, 3))
    before = found.scatter.clone()
    assert torch.equal(found.all_reduce().scatter, before)


def test_a_dataset_a_tensor_and_statistics_give_one_distance():
    data, other = load_data("digits", limit=300), load_data("digits", split="test")
    value = frechet_distance(other, data)
    assert frechet_distance(other.x, data.x, batch_size=7) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(other.x.numpy(), FrechetStatistics.of(data)) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(other.x.double(), data.x.double()) == pytest.approx(value, rel=1e-9)


def test_values_in_another_range_are_moved_to_the_range_of_the_features():
    x = load_data("digits", split="test").x
    data = load_data("digits", limit=300)
    unit = Dataset((x + 1) / 2, data_range=(0, 1))
    value = frechet_distance(x, data, "digits")
    assert value > 0.1
    assert frechet_distance(unit, data, "digits") == pytest.approx(value, rel=1e-4)


def test_the_jackknife_error_is_the_general_one_and_covers_the_spread():
    x, y = normal(200, 3, 1), normal(300, 3, 2) + 0.5
    quick, general = frechet_with_error(x, y), interval(frechet_distance, x, y)
    assert quick.value == pytest.approx(general.value, rel=1e-12)
    assert quick.standard_error == pytest.approx(general.standard_error, rel=1e-9)
    draws = [frechet_with_error(normal(200, 3, 10 + i), normal(300, 3, 1000 + i) + 0.5) for i in range(100)]
    spread = np.std([d.value for d in draws], ddof=1)
    # the spread of 100 draws is known to 7 %, the mean error to 2 %; 30 % off has a chance below 1e-4
    assert np.mean([d.standard_error for d in draws]) == pytest.approx(spread, rel=0.3)


def test_extrapolation_removes_the_bias_of_few_samples():
    # the reference is exact by construction, so that only the samples' bias is at stake: it is about 0.043 at n = 2000; one
    # extrapolation varies by 0.008, the mean of twelve by 0.0024
    d, n = 16, 2000
    reference = whitened(4000, d, 99)
    plain, extrapolated = [], []
    for seed in range(12):
        x = normal(n, d, seed)
        plain.append(frechet_distance(x, reference))
        extrapolated.append(frechet_infinity(x, reference, seed=seed))
    values = np.array([e.value for e in extrapolated])
    assert np.mean(plain) > 0.035
    assert abs(values.mean()) < 0.013
    # its error must not be that of the fit alone, which is a third too small; it is known to err on the large side
    assert 0.8 < np.mean([e.standard_error for e in extrapolated]) / values.std(ddof=1) < 2.5


WRONG = [
    (lambda: frechet_distance(normal(1, 3), normal(5, 3)), "two samples, got 1"),
    (lambda: frechet_distance(normal(5, 3), normal(5, 4)), "3 and 4 dimensions"),
    (lambda: frechet_distance(normal(5, 3) * float("nan"), normal(5, 3)), "sample 0 holds NaN"),
    (lambda: frechet_distance(normal(5, 3), normal(5, 3), batch_size=0), "batch_size"),
    (lambda: frechet_distance(normal(5, 3), FrechetStatistics("mnist")), "'values' and 'mnist'"),
    (lambda: FrechetStatistics().update(torch.zeros(3)), r"\(batch, d\)"),
    (lambda: FrechetStatistics().update(torch.full((2, 2), torch.inf)), "finite"),
    (lambda: FrechetStatistics().update(normal(5, 3)).update(normal(5, 2)), "2 dimensions"),
    (lambda: FrechetStatistics("a").merge(FrechetStatistics("b")), "do not mix"),
    (lambda: frechet_infinity(normal(50, 30), normal(50, 30)), "at least 120 samples"),
    (lambda: frechet_infinity(normal(50, 3), normal(50, 3), points=2), "points"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_call_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
