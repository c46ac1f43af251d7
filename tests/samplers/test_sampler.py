"""The contract every sampler keeps, tested on the simplest ones and on deliberately bad models."""

from __future__ import annotations

import threading
from dataclasses import FrozenInstanceError

import pytest
import torch

from trueward.denoisers import Denoiser, Posterior
from trueward.noise import Noise
from trueward.samplers import DDIM, Ancestral
from trueward.samplers.edm import EDMHeun
from trueward.samplers.plan import Table, combine
from trueward.samplers.probability_flow import ProbabilityFlow
from trueward.schedules import EDM, VPLinear


class Gaussian(Denoiser):
    """Exact for data N(0, 0.25); counts its calls."""

    def __init__(self, schedule=None, shape=(2,), **options):
        super().__init__(schedule or VPLinear(), shape=shape, **options)
        self.calls = 0

    def forward(self, x_t, t, **condition):
        self.calls += 1
        alpha, sigma = self.schedule.coefficients(t, x_t)
        norm = alpha**2 * 0.25 + sigma**2
        return Posterior(x_t, alpha, sigma, mean=x_t * (0.25 * alpha / norm), var=0.25 * sigma**2 / norm)


SAMPLERS = [
    DDIM(7),
    Ancestral(7),
    Ancestral(5, variance="posterior"),
    EDMHeun(6),
    EDMHeun(6, churn=3.0),
    ProbabilityFlow(rtol=1e-4, atol=1e-4),
]
ids = [f"{s.name}{i}" for i, s in enumerate(SAMPLERS)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=ids)
def test_a_sample_depends_on_seed_and_index_alone(sampler):
    d = Gaussian()
    whole = sampler.sample(d, n=64, seed=3).x
    for batch in (1, 7, 64):
        parts = [sampler.sample(d, seed=3, indices=range(i, min(i + batch, 64))).x for i in range(0, 64, batch)]
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(sampler.sample(d, n=64, seed=4).x, whole)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=ids)
def test_two_threads_may_share_a_sampler(sampler):
    alone = {i: sampler.sample(Gaussian(), n=16, seed=i).x for i in range(4)}
    found = {}

    def work(i):
        for _ in range(5):
            found[i] = sampler.sample(Gaussian(), n=16, seed=i).x

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], alone[i]) for i in range(4))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=ids)
def test_evaluations_are_counted_exactly(sampler):
    d = Gaussian()
    result = sampler.sample(d, n=3)
    assert result.nfe == d.calls
    assert sampler.nfe(d.schedule) in (d.calls, None)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=ids)
def test_the_callers_tensor_and_generator_are_left_alone(sampler):
    x_T = torch.randn(5, 2)
    kept, state = x_T.clone(), torch.get_rng_state()
    out = sampler.sample(Gaussian(), x_T)
    assert torch.equal(x_T, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert out.x.data_ptr() != x_T.data_ptr()
    assert not out.x.requires_grad


@pytest.mark.parametrize("sampler", SAMPLERS, ids=ids)
def test_trajectory_holds_every_state_and_callback_sees_every_step(sampler):
    seen = []
    result = sampler.sample(
        Gaussian(),
        n=4,
        trajectory=True,
        callback=lambda s: seen.append((s.index, s.steps, s.nfe, s.x.clone(), s.posterior.mean.shape)),
    )
    assert [s[0] for s in seen] == list(range(1, len(seen) + 1))
    assert len(result.trajectory) == len(result.times) == len(seen) + 1
    assert all(torch.equal(a, s[3]) for a, s in zip(result.trajectory[1:], seen, strict=True))
    assert torch.equal(result.trajectory[-1], result.x)
    assert seen[-1][2] == result.nfe


@pytest.mark.parametrize("sampler", SAMPLERS, ids=ids)
def test_any_shape_is_sampled_row_by_row(sampler):
    flat = sampler.sample(Gaussian(shape=(24,)), n=3).x
    image = sampler.sample(Gaussian(shape=(2, 3, 4)), n=3).x
    scalar = sampler.sample(Gaussian(shape=()), n=3).x
    if not isinstance(sampler, ProbabilityFlow):  # its step size depends on all entries of a sample
        assert torch.equal(image.flatten(1), flat)
    assert torch.allclose(image.flatten(1), flat, atol=1e-5)
    assert scalar.shape == (3,)


@pytest.mark.parametrize(
    "sampler", [s for s in SAMPLERS if s.row_wise], ids=[i for s, i in zip(SAMPLERS, ids) if s.row_wise]
)
def test_rows_on_different_levels_step_as_they_would_alone(sampler):
    d = Gaussian(EDM())
    noise = Noise.rows(0, sampler.steps)
    x = noise.normal(77, (2,), torch.float64)
    together = sampler.start(d, noise)
    got = sampler.step(together, x, torch.arange(sampler.steps))
    for k in range(sampler.steps):
        run = sampler.start(d, noise)
        assert torch.allclose(got[k], sampler.step(run, x, k)[k], rtol=1e-13, atol=1e-13)
        assert run.nfe == sampler.cost(k)


def test_a_sampler_is_an_immutable_value():
    assert DDIM(7) == DDIM(7)
    assert hash(DDIM(7)) == hash(DDIM(7))
    with pytest.raises(FrozenInstanceError):
        DDIM(7).steps = 3


def test_labels_follow_their_rows():
    class Labelled(Gaussian):
        def forward(self, x_t, t, class_labels):
            assert class_labels.dtype == torch.int64
            p = super().forward(x_t, t)
            return p.replace(mean=class_labels[:, None].to(x_t.dtype).expand_as(x_t))

    d = Labelled(num_classes=3)
    labels = torch.tensor([2, 0, 1, 3])
    for sampler in SAMPLERS[:-1]:
        assert torch.allclose(sampler.sample(d, n=4, class_labels=labels).x, labels[:, None].float().expand(4, 2))
    assert torch.allclose(
        ProbabilityFlow(denoise_to_zero=True).sample(d, n=4, class_labels=labels).x[:, 0], labels.float()
    )
    assert (DDIM(3).sample(d, n=2, class_labels=1).x == 1).all()
    assert (DDIM(3).sample(d, n=2).x == 3).all()  # no label given: "no class"


def test_a_model_that_answers_nan_is_reported_with_step_and_time():
    class Breaks(Gaussian):
        def forward(self, x_t, t, **condition):
            p = super().forward(x_t, t)
            return p.replace(mean=p.mean * torch.nan) if t < 0.5 else p

    with pytest.raises(ValueError, match=r"NaN or infinite at step 7, leaving t=0.4006 \(2 of 2 rows\)"):
        DDIM(11, grid="uniform").sample(Breaks(), n=2)


def test_combine_reads_like_the_formula_and_writes_where_it_is_told():
    x, y, z = torch.randn(3, 4, 2)
    out = torch.empty(4, 2)
    c = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    got = combine((2.0, x), (c, y), (0.0, z * torch.inf), (-1.0, z), out=out)
    assert got is out
    assert torch.allclose(got, 2 * x + c * y - z)


def test_table_gives_floats_for_a_level_and_columns_for_rows():
    table = Table([0.1, 0.2, 0.3])
    x = torch.zeros(2, 3, 4)
    assert table(1, x) == 0.2
    assert torch.equal(table(torch.tensor([2, 0]), x), torch.tensor([0.3, 0.1]).view(2, 1, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DDIM(0), "steps must be a whole number >= 1, got 0"),
        (lambda: DDIM(2.5), "steps must be a whole number >= 1, got 2.5"),
        (lambda: DDIM(True), "steps must be a whole number"),
        (lambda: DDIM(5, grid="unifrom"), "Did you mean 'uniform'"),
        (lambda: DDIM(5, t_end=-1.0), "t_end must be a finite time >= 0"),
        (lambda: DDIM(5, t_end=0.0).sample(Gaussian(), n=1), "no noise left"),
        (lambda: EDMHeun(5, t_end=0.0, grid="uniform").sample(Gaussian(), n=1), "no noise left"),
        (lambda: DDIM(5, eta=1.5), r"eta must lie in \[0, 1\]"),
        (lambda: Ancestral(5, variance="gamma"), "Unknown variance 'gamma'"),
        (lambda: Ancestral(5, eta=0.5, variance="beta"), "belongs to eta=1"),
        (lambda: EDMHeun(5, churn=-1.0), "churn must be finite and >= 0"),
        (lambda: EDMHeun(5, churn_min=2.0, churn_max=1.0), "churn_max must be at least"),
        (lambda: ProbabilityFlow(rtol=0.0), "rtol must be finite and positive"),
        (lambda: ProbabilityFlow.for_budget(10), "chooses its own number"),
        (lambda: ProbabilityFlow(max_nfe=20).sample(Gaussian(), n=1), "max_nfe=20 evaluations were not enough"),
        (lambda: DDIM(5).sample(torch.nn.Identity(), n=1), "wrap your network"),
        (lambda: DDIM(5).sample(Gaussian()), "give n, indices or x_T"),
        (lambda: DDIM(5).sample(Gaussian(), n=0), "n must be at least 1"),
        (
            lambda: DDIM(5).sample(Gaussian(), torch.zeros(2, 3)),
            r"samples of shape \(3,\), but the denoiser takes \(2,\)",
        ),
        (lambda: DDIM(5).sample(Gaussian(), torch.full((2, 2), torch.nan)), "NaN or infinite"),
        (lambda: DDIM(5).sample(Gaussian(), torch.zeros(2, 2, dtype=torch.int64)), "floating-point tensor"),
        (lambda: DDIM(5).sample(Gaussian(), torch.zeros(2, 2), n=3), "n=3 disagrees with the 2 rows"),
        (lambda: DDIM(5).sample(Gaussian(), torch.zeros(2, 2), indices=[1]), "1 indices were given for 2 samples"),
        (lambda: DDIM(5).sample(Gaussian(shape=None), n=2), "Say the shape"),
        (lambda: DDIM(5).sample(Gaussian(), n=2, shape=(3,)), "but the denoiser takes"),
        (lambda: DDIM(5).sample(Gaussian(num_classes=3), n=2, class_labels=4), "0 ... 2 .3 means no class., got 4"),
        (lambda: DDIM(5).sample(Gaussian(num_classes=3), n=2, class_labels=[0, 1, 2]), "one label or one per sample"),
    ],
)
def test_wrong_calls_are_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
