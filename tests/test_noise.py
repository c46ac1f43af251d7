"""The counter-based generator against published vectors, its law, and the identity of samples."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from trueward.noise import Noise, philox


def words(values):
    return tuple(torch.tensor([v]) for v in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known-answer vectors of Random123 (Salmon et al. 2011)
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    assert tuple(int(w) for w in philox(words(counter), key)) == expected
    assert tuple(w.item() for w in philox(tuple(w.numpy() for w in words(counter)), key)) == expected


def test_normals_are_normal_and_uncorrelated():
    # Kolmogorov-Smirnov and correlations at a false-alarm probability of 1e-4 each; the seed is fixed
    x = Noise.rows(0, 2000).normal(3, (50,), torch.float64)
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-4
    for a, b in [
        (x[:, :-1], x[:, 1:]),
        (x[:-1], x[1:]),
        (x, Noise.rows(0, 2000).normal(4, (50,), torch.float64)),
        (x, Noise.rows(1, 2000).normal(3, (50,), torch.float64)),
    ]:
        r = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
        assert abs(r) < 3.9 / a.numel() ** 0.5


def test_uniforms_are_uniform_and_independent_of_the_normals_of_the_same_draw():
    noise = Noise.rows(7, 20000)
    u = noise.uniform(2)
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4
    z = noise.normal(2, (1,), torch.float64)[:, 0]
    assert abs(torch.corrcoef(torch.stack([u, z]))[0, 1].item()) < 3.9 / 20000**0.5


def test_a_row_does_not_depend_on_its_neighbours():
    full = Noise.rows(5, 64).normal(9, (3, 4))
    assert torch.equal(Noise.rows(5, [17, 3]).normal(9, (3, 4)), full[[17, 3]])
    assert torch.equal(Noise.rows(5, 64)[torch.tensor([40])].normal(9, (3, 4)), full[40:41])


def test_rows_may_stand_at_different_draws():
    noise = Noise.rows(5, 3)
    mixed = noise.normal(torch.tensor([4, 9, 2]), (6,))
    expected = torch.stack([noise.normal(d, (6,))[i] for i, d in enumerate((4, 9, 2))])
    assert torch.equal(mixed, expected)


def test_a_prefix_of_a_longer_draw_is_the_same_and_float32_rounds_float64():
    noise = Noise.rows(1, 4)
    assert torch.equal(noise.normal(0, (5,)), noise.normal(0, (12,))[:, :5])
    assert torch.allclose(noise.normal(0, (64,)).double(), noise.normal(0, (64,), torch.float64), atol=1e-5)


def test_large_and_negative_seeds_and_large_indices_are_distinct():
    seeds = [0, 1, -1, 2**32, 2**63 - 1]
    draws = torch.stack([Noise.rows(s, [i]).normal(0, (8,))[0] for s in seeds for i in (0, 1, 2**32, 2**40 + 1)])
    assert torch.pdist(draws).min() > 1e-3


def test_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    Noise.rows(0, 4).normal(0, (4,))
    assert torch.equal(torch.get_rng_state(), before)
