"""A refined sampler stands where a sampler stands: guidance and rejection with stored constants, at any batch size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from trueward.covariance import AnalyticCovariance, GammaTable
from trueward.critics import Critic, Discriminator, TruthCritic
from trueward.denoisers import ClassifierFreeGuidance, Denoiser, Posterior
from trueward.drawing import Drawing
from trueward.networks import MLP, LogitHead
from trueward.refinement import DiffRS, DiscriminatorGuidance, RefinedSampler, SamplerChain, refined_sampler
from trueward.refinement.refined_sampler import guidance_options, rejection_options
from trueward.samplers import DDIM, Ancestral, EDMHeun, sampler, sampler_names
from trueward.schedules import EDM
from trueward.truth import GaussianMixture

MODES = [[-0.5], [0.5]]
REAL, MODEL = GaussianMixture([0.5, 0.5], MODES, 0.01), GaussianMixture([0.2, 0.8], MODES, 0.01)
SCHEDULE = EDM()


def model() -> Denoiser:
    return MODEL.denoiser(SCHEDULE)


def critic() -> Critic:
    return TruthCritic(REAL, MODEL, SCHEDULE)


def refined(**options) -> RefinedSampler:
    options = {"rejection": {"percentile": 0.95, "warm_up": 200}, **options}
    return RefinedSampler(EDMHeun(steps=9), critic(), **options)


def test_guidance_alone_is_the_sampler_on_the_guided_model():
    found = RefinedSampler(EDMHeun(steps=9), critic(), guidance={"weight": 0.5, "low": 0.01}).sample(
        model(), n=20, seed=3
    )
    guided = DiscriminatorGuidance(model(), critic(), 0.5, noise_range=(0.01, math.inf))
    expected = EDMHeun(steps=9).sample(guided, n=20, seed=3)
    assert torch.allclose(found.x, expected.x, rtol=1e-12)
    assert found.nfe == expected.nfe == 17


def test_rejection_is_that_of_the_chain_with_its_constants():
    own = refined()
    found = own.sample(model(), n=50, seed=3, batch_size=20)
    constants = own.calibration(model()).constants(0.95)
    expected = DiffRS(SamplerChain(EDMHeun(steps=9), model(), critic()), constants).sample(50, seed=3, batch_size=50)
    assert torch.allclose(found.x, expected.x, rtol=1e-12)
    assert torch.equal(found.nfe, expected.nfe)
    assert found.moves.sum() > 0


def test_both_together_bring_the_lost_mode_back_most():
    # the model gives x < 0 a weight of 0.2, the data of 0.5; 1000 samples: standard error 0.016
    def share(x):
        return (x < 0).double().mean().item()

    plain = share(EDMHeun(steps=9).sample(model(), n=1000).x)
    rejected = share(refined().sample(model(), n=1000, batch_size=250).x)
    guided = share(RefinedSampler(EDMHeun(steps=9), critic(), guidance={}).sample(model(), n=1000).x)
    assert plain == pytest.approx(0.2, abs=0.06)
    assert rejected > plain + 0.1
    assert guided == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(("pieces", "batch_size"), [([100], 7), ([40, 60], 64), ([1, 98, 1], 16)])
def test_samples_and_their_cost_do_not_depend_on_batches_and_pieces(pieces, batch_size):
    own, start, parts = refined(), 0, []
    whole = own.draw(model(), torch.arange(100), 5, batch_size=100)
    for count in pieces:
        parts.append(own.draw(model(), torch.arange(start, start + count), 5, batch_size=batch_size))
        start += count
    assert torch.allclose(torch.cat([p.x for p in parts]), whole.x, atol=1e-10)
    assert torch.equal(torch.cat([p.nfe_kept for p in parts]), whole.nfe_kept)
    total = sum((p.cost for p in parts[1:]), parts[0].cost)
    assert total == whole.cost
    assert whole.cost.nfe == whole.cost.nfe_kept == int(whole.nfe_kept.sum())
    assert whole.cost.critic == sum(map(sum, whole.cost.tested))


def test_a_drawing_keeps_the_slots_busy_over_the_whole_range():
    batches = list(Drawing(model(), refined(), 5).batches(10, 90, batch_size=8))
    assert len(batches) == 1
    assert batches[0].indices.tolist() == list(range(10, 90))
    assert batches[0].nfe == pytest.approx(batches[0].cost.nfe / 80)
    counted = []
    list(Drawing(model(), refined(), 5).batches(10, 90, batch_size=8, advance=counted.append))
    assert sum(counted) == 80
    assert len(counted) > 8  # not all at the end


def test_abandoned_work_is_in_the_cost_and_not_on_the_path():
    own = refined(rejection={"percentile": 1.0, "warm_up": 200, "max_nfe": 19})
    drawn = own.draw(model(), torch.arange(100), 5)
    assert drawn.nfe_kept.max() <= 19
    assert drawn.cost.restarts > 0
    assert drawn.cost.nfe > drawn.cost.nfe_kept == int(drawn.nfe_kept.sum())
    assert drawn.cost.summary()["nfe"] == pytest.approx(drawn.cost.nfe / 100)


def test_constants_are_measured_once_and_serve_every_percentile(tmp_path: Path, monkeypatch):
    own = refined(folder=tmp_path)
    first = own.calibration(model()).log_ratios
    assert [p.name for p in tmp_path.iterdir()] == [f"rejection-{own.key(model())}.safetensors"]

    def never(*args, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(refined_sampler, "calibrate", never)
    other = refined(folder=tmp_path, rejection={"percentile": 0.5, "warm_up": 200})
    assert torch.equal(other.calibration(model()).log_ratios, first)
    loose, strict = other.rule(model()).constants, own.rule(model()).constants
    assert bool((loose.log_m_marginal <= strict.log_m_marginal).all())
    for changed in (
        refined(folder=tmp_path, guidance={}),
        refined(folder=tmp_path, labels=(0,)),
        refined(folder=tmp_path, rejection={"warm_up": 100}),
        RefinedSampler(DDIM(steps=9), critic(), rejection={"warm_up": 200}, folder=tmp_path),
    ):
        assert changed.key(model()) != own.key(model())
    with pytest.raises(AssertionError, match="measured again"):
        refined(folder=tmp_path, guidance={}).calibration(model())


def test_constants_belong_to_the_covariance_they_were_measured_with():
    def table(gamma: float) -> GammaTable:
        times = np.array([0.002, 1.0, 80.0])
        columns = {name: np.full(3, 0.1) for name in ("residual", "gamma_error", "residual_error", "count")}
        return GammaTable(SCHEDULE, times, np.full(3, gamma), **columns)

    own = RefinedSampler(Ancestral(steps=9, variance="analytic"), critic(), rejection={"warm_up": 20})
    models = [AnalyticCovariance(model(), table(gamma)) for gamma in (0.3, 0.3, 0.6)]
    first, again, other = (own.key(m) for m in models)
    assert first == again != other
    drawings = [Drawing(m, own).identity() for m in models]
    assert drawings[0] == drawings[1]
    assert drawings[0]["model"] != drawings[2]["model"]
    # also where the sampler finds the covariance beside the model by itself
    assert len({RefinedSampler(own.inner, own.critic, guidance={}, rejection={}).key(m) for m in models}) == 2


def test_a_calibration_of_another_chain_is_refused(tmp_path: Path):
    own, other = refined(folder=tmp_path), refined(folder=tmp_path, guidance={"weight": 0.5})
    own.calibration(model())
    other.calibration(model())
    (tmp_path / f"rejection-{own.key(model())}.safetensors").replace(
        tmp_path / f"rejection-{other.key(model())}.safetensors"
    )
    with pytest.raises(ValueError, match="belongs to another chain"):
        refined(folder=tmp_path, guidance={"weight": 0.5}).calibration(model())


def test_the_text_of_a_refined_sampler_says_what_its_samples_depend_on():
    assert repr(refined()) == repr(refined())
    assert repr(refined(rejection={})) == repr(refined(rejection={"percentile": 0.75}))
    texts = {
        repr(s)
        for s in (
            refined(),
            refined(rejection={"percentile": 0.9}),
            refined(rejection={"max_nfe": 100}),
            refined(guidance={}),
            refined(guidance={"weight": 2.0}),
            RefinedSampler(EDMHeun(steps=9), TruthCritic(REAL, MODEL, SCHEDULE, 0.5), guidance={}),
            RefinedSampler(EDMHeun(steps=9), critic(), guidance={}),
        )
    }
    assert len(texts) == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RefinedSampler(EDMHeun(), critic()), "needs guidance, rejection or both"),
        (lambda: refined(rejection={"percentil": 0.5}), "Did you mean 'percentile'"),
        (lambda: refined(guidance={"wieght": 0.5}), "Did you mean 'weight'"),
        (lambda: refined(rejection={"percentile": 75}), "for the 75th percentile give 0.75"),
        (lambda: refined(rejection={"percentile": "high"}), "percentile must lie in"),
        (
            lambda: RefinedSampler(sampler("dpm-solver++"), critic(), rejection={}),
            "cannot be stepped row by row, which rejection needs",
        ),
        (lambda: refined(rejection={"max_nfe": 5}).check(model()), "max_nfe=5 is less than the 17 evaluations"),
        (lambda: refined(rejection={"warm_up": 1}).check(model()), "warm_up must be at least 2"),
        (lambda: refined(rejection={"warm_up": "many"}), "warm_up must be at least 2 samples, a whole number"),
        (lambda: refined(rejection={}).sample(model(), n=2.5), "n must be at least 1, a whole number"),
        (lambda: refined(rejection={}).sample(model(), indices=[]), "indices must be whole numbers, at least one"),
        (
            lambda: RefinedSampler(EDMHeun(9), critic(), guidance={}).sample(model(), n=2, batch_size=0),
            "batch_size must be at least 1, got 0",
        ),
        (lambda: refined(rejection={"on_reject": "resample"}).check(model()), "needs steps that draw noise"),
    ],
)
def test_wrong_options_are_named_before_anything_is_measured(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_option_of_a_correction_is_also_one_of_a_sampler_that_takes_it():
    from dataclasses import fields

    own = {f.name for name in sampler_names() for f in fields(sampler(name)) if sampler(name).row_wise}
    assert not own & {*rejection_options(), *guidance_options()}
    assert not set(rejection_options()) & set(guidance_options())


def test_levels_that_are_tested_have_constants_of_their_own_and_save_the_critic():
    own = refined(rejection={"percentile": 0.95, "warm_up": 200, "test_levels": [3, 6, 9]})
    rule = own.rule(model())
    jumps = own.calibration(model()).log_ratios
    expected = torch.quantile(jumps[:, 6] - jumps[:, 3], 0.95).clamp(min=0.0)
    assert rule.constants.log_m_transition[6] == expected
    few, every = own.sample(model(), n=300), refined().sample(model(), n=300)
    assert few.tested[0].nonzero()[:, 0].tolist() == [3, 6, 9]
    assert few.critic_evaluations < 0.6 * every.critic_evaluations
    share = (few.x < 0).double().mean().item()
    assert share > 0.2 + 4 * math.sqrt(0.16 / 300)  # the model's own share and four standard errors
    assert repr(own) != repr(refined())
    assert "test_levels" not in repr(refined())


def test_stochastic_samplers_with_and_without_the_textbook_rule():
    # resampling is exact for an exact critic and constants that bound the ratio: half of the mass is back (4 sigma = 0.09)
    own = RefinedSampler(
        Ancestral(steps=30), critic(), rejection={"on_reject": "resample", "percentile": 1.0, "warm_up": 400}
    )
    x = own.sample(model(), n=500, batch_size=250).x
    assert (x < 0).double().mean().item() == pytest.approx(0.5, abs=0.12)


class TwoClasses(Denoiser):
    """x_0 = 2 class - 1 (0 for no class), exactly."""

    def __init__(self) -> None:
        super().__init__(EDM(), shape=(1,), num_classes=2)

    def forward(self, x_t, t, class_labels=None):
        self.rows = len(x_t)
        mean = torch.tensor([-1.0, 1.0, 0.0], dtype=x_t.dtype)[class_labels].unsqueeze(1)
        return Posterior(x_t, *self.schedule.coefficients(t, x_t), mean=mean.expand_as(x_t))


def blind(num_classes: int | None) -> Discriminator:
    """A critic that answers 0."""
    network = LogitHead(MLP(1, width=8, depth=1, num_classes=num_classes))
    return Discriminator(network, EDM(), shape=(1,), num_classes=num_classes).eval().requires_grad_(False)


def test_labels_follow_their_samples_through_rejection():
    torch.manual_seed(0)
    judge = blind(2)
    torch.nn.init.normal_(judge.network.head[-1].weight, std=3.0)  # rejects a good part, at random
    own = RefinedSampler(EDMHeun(steps=6), judge, rejection={"percentile": 0.6, "warm_up": 64}, labels=(0, 1))
    drawn = Drawing(TwoClasses(), own, 0, (0, 1))
    (batch,) = drawn.batches(0, 64, batch_size=5)
    assert sum(map(sum, batch.cost.moves)) > 10
    assert batch.labels.tolist() == [0, 1] * 32
    assert torch.allclose(batch.x[:, 0], torch.tensor([-1.0, 1.0]).repeat(32), atol=0.02)


def test_constants_are_those_of_all_classes_where_none_were_named_but_labels_are_given():
    class OfClass(Critic):
        """Says of what class a sample is, from a critic that was asked for one."""

        def __init__(self) -> None:
            super().__init__(EDM(), shape=(1,), num_classes=2)

        def logit(self, x_t, t, class_labels):
            return 0.1 * torch.tanh(x_t[:, 0] * (2.0 * class_labels - 1.0))

    own = RefinedSampler(EDMHeun(5), OfClass(), rejection={"warm_up": 40})
    named = RefinedSampler(EDMHeun(5), OfClass(), rejection={"warm_up": 40}, labels=(0, 1))
    labels = torch.arange(12) % 2
    found, expected = (s.sample(TwoClasses(), n=12, class_labels=labels) for s in (own, named))
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.condition["class_labels"], labels)
    alone = own.sample(TwoClasses(), indices=[4, 5], class_labels=labels[4:6])
    assert torch.equal(alone.x, found.x[4:6])  # the constants do not depend on which labels a call happens to hold
    drawing = Drawing(TwoClasses(), own, labels=(1,))
    drawing.prepare()
    (batch,) = drawing.batches(0, 6)
    assert batch.labels.tolist() == [1] * 6
    assert len(own._known) == 2  # of all classes, and of the one that is drawn


def test_the_critic_is_asked_once_per_row_of_a_model_that_is_guided_to_its_class():
    own = RefinedSampler(EDMHeun(steps=4), blind(2), guidance={"low": 0.0}, labels=(0, 1))
    network = TwoClasses()
    drawn = own.draw(
        ClassifierFreeGuidance(network, 2.0), torch.arange(6), class_labels=torch.ones(6, dtype=torch.int64)
    )
    assert network.rows == 12  # the model saw both halves
    assert drawn.cost.critic == drawn.cost.critic_gradients == 6 * 7


def test_a_conditional_critic_wants_a_class():
    own = RefinedSampler(EDMHeun(steps=4), blind(2), guidance={})
    with pytest.raises(ValueError, match="knows no 'no class'"):
        own.sample(TwoClasses(), n=3)
    judged = RefinedSampler(EDMHeun(steps=4), blind(2), rejection={"warm_up": 8})
    with pytest.raises(ValueError, match="knows no 'no class'"):
        judged.sample(TwoClasses(), n=3)
