"""Boosting against the published noise levels and factors, row by row."""

from __future__ import annotations

import math

import pytest
import torch

from trueward.critics import Critic
from trueward.denoisers import Guided
from trueward.refinement import BoostedHeun, DiscriminatorGuidance, SamplerChain
from trueward.samplers import EDMHeun
from trueward.schedules import EDM
from trueward.truth import Gaussian

F64 = torch.float64
MODEL = Gaussian([0.0], 1.0).denoiser(EDM())


class Constant(Critic):
    """A log ratio of its own for every class, with a slope of one that leaves the value alone."""

    def __init__(self, values):
        super().__init__(EDM(), num_classes=None)
        self.values = torch.tensor(values, dtype=F64)

    def logit(self, x_t, t, rows=None, **condition):
        x = x_t.flatten(1).sum(1)
        return self.values[rows] + x - x.detach()


class Recording(Guided):
    """Notes the levels and the points that the model is asked at."""

    def __init__(self, inner):
        super().__init__(inner)
        self.levels, self.points = [], []

    def forward(self, x_t, t, rows=None, **condition):
        self.levels.append(torch.as_tensor(t, dtype=F64).expand(len(x_t)).clone())
        self.points.append(x_t.clone())
        return self.inner(x_t, t, **condition)


def run(sampler, values=(-1.0, 1.0), **options):
    recording = Recording(MODEL)
    guided = DiscriminatorGuidance(recording, Constant(values), 1.0, second_weight=0.0, **options)
    x = sampler.sample(guided, n=len(values), dtype=F64, rows=torch.arange(len(values))).x
    return x, recording


def test_doubtful_rows_churn_at_every_fifth_step_with_the_published_levels():
    _, recording = run(BoostedHeun(18))
    first = recording.levels[::2]  # the first evaluation of every step
    for step, doubtful, sure in ((5, 15.778990, 12.910082), (10, 1.329986, 1.088171), (15, 0.028031, 0.022935)):
        assert first[step].tolist() == pytest.approx([doubtful, sure], abs=1e-6)
    plain = EDMHeun(18).levels(EDM()).t
    for step in set(range(18)) - {5, 10, 15}:
        assert first[step].tolist() == pytest.approx([plain[step]] * 2, rel=1e-12)


def test_doubtful_rows_are_guided_twice_as_much_at_even_steps():
    _, recording = run(BoostedHeun(18, extra_churn=0.0))
    s = EDMHeun(18).levels(EDM()).t
    for step in range(14):  # inside the window
        x, x_e = recording.points[2 * step], recording.points[2 * step + 1]
        level = float(s[step])
        unguided = x + (float(s[step + 1]) - level) * (x - MODEL(x, level).mean) / level
        moved = (x_e - unguided)[:, 0] / ((level - float(s[step + 1])) * level)  # in units of w grad l = 1
        assert moved.tolist() == pytest.approx([2.0 if step % 2 == 0 else 1.0, 1.0], abs=1e-9)


def test_sure_rows_are_sampled_as_without_boosting():
    x, _ = run(BoostedHeun(18), (1.0, -1.0, 0.0))
    plain, _ = run(EDMHeun(18), (1.0, -1.0, 0.0))
    assert torch.allclose(x[[0, 2]], plain[[0, 2]], atol=1e-12, rtol=0)
    assert (x[1] - plain[1]).abs() > 1e-3


def test_outside_the_window_nothing_is_boosted():
    x, _ = run(BoostedHeun(18), (-1.0, -1.0), noise_range=(1e3, math.inf))
    plain, _ = run(EDMHeun(18), (-1.0, -1.0), noise_range=(1e3, math.inf))
    assert torch.allclose(x, plain, atol=1e-12, rtol=0)


def test_a_boosted_sample_does_not_depend_on_its_neighbours():
    recording = DiscriminatorGuidance(Recording(MODEL), Constant((-1.0, 1.0)), 1.0)
    rows = torch.tensor([0, 1, 0, 1])
    together = BoostedHeun(12).sample(recording, n=4, seed=7, dtype=F64, rows=rows).x
    for i in range(4):
        alone = BoostedHeun(12).sample(recording, indices=[i], seed=7, dtype=F64, rows=rows[i : i + 1]).x
        assert torch.allclose(alone[0], together[i], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BoostedHeun(5).sample(MODEL, n=2), "guidance of a DiscriminatorGuidance"),
        (
            lambda: BoostedHeun(5).sample(DiscriminatorGuidance(MODEL, Constant((0.0,)), 1.0, boost=2.0), n=1),
            "a boost of its own",
        ),
        (lambda: BoostedHeun(5, boost=-1.0), "boost must be finite"),
        (lambda: BoostedHeun(5, churn_every=0), "churn_every must be a whole number"),
        (
            lambda: SamplerChain(BoostedHeun(5), DiscriminatorGuidance(MODEL, Constant((0.0,)), 1.0), Constant((0.0,))),
            "row by row",
        ),
    ],
)
def test_wrong_calls_are_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
