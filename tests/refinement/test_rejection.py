"""Diffusion rejection sampling against exact laws of small chains.

Statistical assertions are at four standard errors or more (false alarm below 1e-4); the seeds are fixed.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from trueward.critics import TruthCritic
from trueward.noise import Noise
from trueward.refinement import Calibration, Constants, CostlyRejection, DiffRS, SamplerChain, calibrate
from trueward.samplers import DDIM, Ancestral, EDMHeun, sampler
from trueward.schedules import EDM, VE, VPLinear
from trueward.truth import Gaussian, GaussianMixture

from .chains import F64, HEUN_CONSTANTS, MODEL, PERCENTILE_90, REAL, STRICT_CONSTANTS, SUPREMUM, FourStates, heun_chain


def law(x):
    return torch.bincount(x, minlength=4) / len(x)


def test_the_ratio_of_transitions_is_the_ratio_of_marginals():
    toy = FourStates()
    for t in range(3):
        by_transition = toy.reversal(toy.q, t) / toy.reversal(toy.p, t)
        assert torch.allclose(by_transition, toy.ratio[t] / toy.ratio[t + 1][:, None], rtol=1e-12)


def test_gaussian_transitions_obey_the_same_identity():
    q, p, s = Gaussian([0.0], 1.0), Gaussian([1.0], 4.0), EDM()
    x_t, x_s = torch.tensor([[0.3]], dtype=F64), torch.tensor([[0.9]], dtype=F64)

    def log_reversal(mean, variance):  # law of x at sigma 0.5 given x_s at sigma 1.5
        v_t = variance + 0.25
        gain = v_t / (v_t + 2.0)
        return torch.distributions.Normal(mean + gain * (x_s - mean), math.sqrt(v_t * 2.0 / (v_t + 2.0))).log_prob(x_t)

    child, parent = (q.log_ratio(p, x, s, t).item() for x, t in ((x_t, 0.5), (x_s, 1.5)))
    assert child == pytest.approx(0.6335347746, abs=1e-9)
    assert parent == pytest.approx(0.2031478491, abs=1e-9)
    assert (log_reversal(0.0, 1.0) - log_reversal(1.0, 4.0)).item() == pytest.approx(child - parent, abs=1e-10)


def test_textbook_rejection_is_exact():
    r = DiffRS(FourStates(), SUPREMUM, on_reject="resample").sample(40_000, batch_size=20_000)
    assert torch.allclose(law(r.x), torch.tensor([0.4, 0.1, 0.2, 0.3]), atol=0.01)
    assert torch.allclose(r.acceptance[0, 1:], torch.tensor([0.438588, 0.194225, 0.087838]), atol=0.01)
    assert r.acceptance[1, 0].item() == pytest.approx(0.793400, abs=0.01)


def test_textbook_rejection_with_unit_constants_has_its_known_law():
    one = Constants(torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64))
    r = DiffRS(FourStates(), one, on_reject="resample").sample(40_000, batch_size=20_000)
    assert torch.allclose(law(r.x), torch.tensor([0.204048, 0.204048, 0.295952, 0.295952]), atol=0.01)


@pytest.mark.parametrize(
    ("constants", "n", "expected", "steps", "tolerance"),
    [
        (SUPREMUM, 16_000, [0.469711, 0.076622, 0.167097, 0.286570], 76.558, 2.5),
        (PERCENTILE_90, 160_000, [0.296900, 0.129685, 0.248317, 0.325098], 6.508, 0.08),
        (
            Constants(torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64)),
            60_000,
            [0.156037, 0.213811, 0.336385, 0.293766],
            3.988,
            0.05,
        ),
    ],
    ids=["supremum", "percentile", "unit"],
)
def test_reinitialisation_has_its_exact_law_and_cost(constants, n, expected, steps, tolerance):
    # the law alone would not tell a prior test that forgets the parent ratio; the cost does (82.3 steps)
    r = DiffRS(FourStates(), constants).sample(n, batch_size=40_000)
    error = 4.0 * torch.sqrt(torch.tensor(expected) * (1.0 - torch.tensor(expected)) / n)
    assert ((law(r.x) - torch.tensor(expected)).abs() < error).all()
    assert r.nfe.double().mean().item() == pytest.approx(steps, abs=tolerance)
    assert r.nfe_total == int(r.nfe.sum())


def exact_law(toy, log_m):
    """Output law and the KL bound's two terms of the textbook kernels, by linear algebra."""
    logit = toy.scale * toy.ratio.log()
    a_prior = torch.exp(logit[3] - log_m[0]).clamp(max=1.0)
    law = toy.p[3] * a_prior
    z = law.sum()
    law = law / z
    bound = -(toy.q[3] * (a_prior.log() - z.log())).sum() + (toy.q[3] * (toy.q[3] / toy.p[3]).log()).sum()
    for t in (2, 1, 0):
        p, q = toy.reversal(toy.p, t), toy.reversal(toy.q, t)
        a = torch.exp(logit[t] - logit[t + 1][:, None] - log_m[3 - t]).clamp(max=1.0)
        z = (p * a).sum(1, keepdim=True)
        bound = bound + (toy.q[t + 1][:, None] * q * ((q / p).log() - a.log() + z.log())).sum()
        law = law @ (p * a / z)
    return law, bound


@pytest.mark.parametrize(
    ("scale", "bound", "kl"),
    [
        (0.0, 0.456435, 0.456435),
        (0.25, 0.250489, 0.250291),
        (0.5, 0.109567, 0.109262),
        (1.0, 0.0, 0.0),
        (1.5, 0.109417, 0.104949),
    ],
)
def test_the_kl_bound_of_the_paper_holds_on_the_chain(scale, bound, kl):
    toy = FourStates(scale)
    logit = scale * toy.ratio.log()
    log_m = [logit[3].max()] + [(logit[t] - logit[t + 1][:, None]).max() for t in (2, 1, 0)]
    output, found = exact_law(toy, log_m)
    divergence = (toy.q[0] * (toy.q[0] / output).log()).sum()
    assert found.item() == pytest.approx(bound, abs=1e-5)
    assert divergence.item() == pytest.approx(kl, abs=1e-5)
    assert divergence <= found + 1e-12


@pytest.mark.parametrize(
    ("options", "churn", "negative", "kept", "total"),
    [
        ({}, 0.0, 0.356, 38.68, 38.68),
        ({"max_nfe": 45}, 0.0, 0.363, 37.57, 40.4),
        ({}, 40.0, 0.326, 39.3, 39.3),
    ],
    ids=["heun", "budget", "churn"],
)
def test_heun_with_rejection_has_the_published_fraction_and_cost(options, churn, negative, kept, total):
    # without the parent ratio 0.999, without re-test 0.297, inverted 0.130, wrong re-noising 0.235
    r = DiffRS(heun_chain(churn), HEUN_CONSTANTS, **options).sample(8000, batch_size=2000)
    assert (r.x < 0).double().mean().item() == pytest.approx(negative, abs=0.022)
    assert r.nfe.double().mean().item() == pytest.approx(kept, abs=0.35)
    assert r.nfe_per_sample == pytest.approx(total, abs=0.5)
    assert r.occupancy > 0.95
    if not churn:
        assert r.x[r.x < 0].std().item() == pytest.approx(0.099, abs=0.006)


def test_calibration_makes_rejection_stricter_with_the_percentile():
    chain = heun_chain()
    calibration = calibrate(chain, 2000, batch_size=500)
    found = [DiffRS(chain, calibration.constants(g)).sample(2000, batch_size=1000) for g in (0.5, 0.9, 0.99, 1.0)]
    fractions = [(r.x < 0).double().mean().item() for r in found]
    assert fractions == sorted(fractions)
    assert fractions == pytest.approx([0.24, 0.354, 0.45, 0.527], abs=0.06)
    assert [r.nfe.double().mean().item() for r in found] == pytest.approx([36.0, 38.6, 43.8, 49.9], rel=0.12)


def test_quantiles_interpolate_and_are_floored_at_zero():
    c = Calibration(torch.tensor([-1, -0.5, 0, 0.2, 0.4, 0.8, 1.2, 2], dtype=F64)[:, None].expand(8, 2))
    assert c.constants(0.75).log_m_marginal[0].item() == pytest.approx(0.9)
    assert c.constants(0.25).log_m_marginal[0].item() == 0.0
    assert c.constants(0.25, floor=False).log_m_marginal[0].item() == pytest.approx(-0.125)


@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_a_critic_that_sees_no_difference_leaves_the_base_sampler_alone(churn):
    chain = heun_chain(churn, scale=0.0)
    zero = torch.zeros(19, dtype=F64)
    r = DiffRS(chain, Constants(zero, zero)).sample(50, seed=5, batch_size=16)
    assert torch.allclose(r.x, chain.sampler.sample(chain.denoiser, n=50, seed=5).x, rtol=0, atol=1e-12)
    assert (r.nfe == 35).all()
    assert r.restarts == 0


def test_a_critic_that_is_constant_leaves_the_base_sampler_alone_too():
    # calibrated constants hold the offset; a transition test without the parent would reject
    class Offset(SamplerChain):
        def log_ratio(self, x, level, condition):
            return torch.full((len(x),), 3.0, dtype=F64)

    plain = heun_chain()
    chain = Offset(plain.sampler, plain.denoiser, plain.critic)
    r = DiffRS(chain, calibrate(chain, 20).constants(0.9)).sample(20, seed=5, batch_size=8)
    assert torch.allclose(r.x, chain.sampler.sample(chain.denoiser, n=20, seed=5).x, rtol=0, atol=1e-12)
    assert (r.nfe == 35).all()
    assert r.accepted[0].sum() == r.tested[0].sum() == 20 * 18


@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_a_step_of_rows_on_different_levels_is_the_step_of_each_row_alone(churn):
    chain = heun_chain(churn)
    level = torch.tensor([17, 0, 5, 17, 9, 16, 1, 3])
    noise, draw = Noise.rows(3, 8), torch.arange(8)
    x = chain.prior(noise, draw) * (chain._sigma[level] / 80.0)[:, None]
    together = chain.step(x, level, noise, draw, {})
    for i in range(8):
        row = slice(i, i + 1)
        alone = chain.step(x[row], level[row], noise[row], draw[row], {})
        single = chain.sampler.step(
            chain.sampler.start(chain.denoiser, noise[row]), x[row], int(level[i]), int(draw[i])
        )
        assert torch.allclose(together[row], alone, atol=1e-10, rtol=0)
        assert torch.allclose(together[row], single, atol=1e-10, rtol=0)


def test_a_sample_does_not_depend_on_the_batch_size():
    rule = DiffRS(heun_chain(10.0), HEUN_CONSTANTS, max_nfe=60)
    a, b, c = (rule.sample(64, seed=2, batch_size=size) for size in (64, 16, 1))
    for other in (b, c):
        assert torch.allclose(a.x, other.x, atol=1e-10, rtol=0)
        assert torch.equal(a.nfe, other.nfe)
    part = rule.sample(indices=torch.tensor([7, 40]), seed=2)
    assert torch.allclose(part.x, a.x[[7, 40]], atol=1e-10, rtol=0)


def test_indices_may_be_any_sequence_of_whole_numbers():
    rule = DiffRS(FourStates(), PERCENTILE_90)
    whole = rule.sample(9, seed=4)
    for indices in ([7, 2], (7, 2), np.array([7, 2], dtype=np.int32), torch.tensor([7, 2], dtype=torch.int32)):
        found = rule.sample(indices=indices, seed=4)
        assert torch.equal(found.x, whole.x[[7, 2]])
        assert found.indices.tolist() == [7, 2]


def test_budgets_are_kept_and_everything_spent_is_counted():
    base = 35
    for limit in (base, 40, 60):
        r = DiffRS(heun_chain(), HEUN_CONSTANTS, max_nfe=limit).sample(400, batch_size=100)
        assert r.nfe.max() <= limit
        assert r.nfe_total >= r.nfe.sum()
        assert (r.nfe_total > r.nfe.sum()) == (r.restarts > 0)
        if limit == base:
            assert (r.nfe == base).all()


@pytest.mark.slow
def test_kept_and_total_cost_differ_and_streams_favour_the_quick():
    rule = DiffRS(heun_chain(40.0), STRICT_CONSTANTS)
    slots = rule.sample(4000, batch_size=1000)
    assert (slots.x < 0).double().mean().item() == pytest.approx(0.602, abs=0.033)
    assert slots.nfe.double().mean().item() == pytest.approx(63.9, abs=2.5)
    stream = rule.sample(1000, batch_size=1000, mode="stream", seed=4)
    assert stream.nfe.double().mean().item() == pytest.approx(53.1, abs=2.0)
    budget = DiffRS(heun_chain(40.0), STRICT_CONSTANTS, max_nfe=70).sample(3000, batch_size=1000)
    assert budget.nfe.double().mean().item() == pytest.approx(49.6, abs=1.0)
    assert budget.nfe_per_sample == pytest.approx(73.3, abs=3.0)


def test_samples_that_are_hardly_ever_finished_are_told_of():
    # log M = 6 lets exp(-6) of what is as real as its parent pass, on each of three levels
    strict = Constants(torch.full((4,), 6.0, dtype=F64), torch.zeros(4, dtype=F64))
    calls = 0

    def enough(seen):
        nonlocal calls
        calls += 1
        if calls > 2000:
            raise KeyboardInterrupt

    with (
        pytest.warns(
            CostlyRejection, match=r"plain sampler takes 3, and 0 samples .* to level [12], 0\.\d+% were"
        ) as told,
        pytest.raises(KeyboardInterrupt),
    ):
        DiffRS(FourStates(), strict).sample(20, observe=enough)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DiffRS(FourStates(), PERCENTILE_90).sample(50)


def test_truncation_by_too_small_a_constant_has_its_exact_law():
    class OneLevel(FourStates):  # q = N(0, 1), proposal N(1, 1)
        steps = 1

        def prior(self, noise, draw):
            return torch.zeros(len(draw), dtype=F64)

        def step(self, x, level, noise, draw, condition):
            return 1.0 + noise.normal(draw, (), F64)

        def log_ratio(self, x, level, condition):
            return torch.where(level == 1, 0.5 - x, 0.0)

    means = []
    for log_m, rate, mean in (
        (0.0, 0.617075, 0.5),
        (0.5, 0.461921, 0.343469),
        (1.0, 0.321182, 0.208004),
        (2.0, 0.132504, 0.046864),
    ):
        c = Constants(torch.tensor([0.0, log_m], dtype=F64), torch.zeros(2, dtype=F64))
        r = DiffRS(OneLevel(), c, on_reject="resample").sample(20_000, batch_size=20_000)
        assert r.acceptance[0, 1].item() == pytest.approx(rate, abs=0.012)
        assert r.x.mean().item() == pytest.approx(mean, abs=0.03)
        means.append(r.x.mean().item())
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(
    ("schedule", "start", "end", "factor", "variance"),
    [(VPLinear(), None, None, 2 / 3, 5 / 9), (EDM(), 1.0, 2.0, 1.0, 3.0)],
)
def test_renoising_is_the_forward_kernel_of_the_schedule(schedule, start, end, factor, variance):
    if start is None:  # alpha^2 = 0.9 and 0.4
        start, end = (schedule.time_of_log_snr(math.log(a / (1 - a))).item() for a in (0.9, 0.4))
    from trueward.times import Times

    truth = Gaussian([0.0], 1.0)
    base = DDIM(3, grid=Times([schedule.t_max, end, start]))
    chain = SamplerChain(base, truth.denoiser(schedule), TruthCritic(truth, truth, schedule))
    n = 40_000
    level = torch.full((n,), 2)
    x = chain.forward(torch.full((n, 1), 3.0, dtype=F64), level, level - 1, Noise.rows(0, n), level)
    assert x.mean().item() == pytest.approx(3.0 * factor, abs=4 * math.sqrt(variance / n))
    assert x.var().item() == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("mode", ["slots", "stream"])
def test_labels_follow_their_samples(mode):
    class Shifted(SamplerChain):
        """x = 3 y + toy: the sign of x tells the label."""

        def _centre(self, condition):
            return 3.0 * condition["class_labels"].to(F64)[:, None]

        def step(self, x, level, noise, draw, condition):
            c = self._centre(condition)
            alpha = torch.ones_like(c)
            return super().step(x - alpha * c, level, noise, draw, {}) + c

        def log_ratio(self, x, level, condition):
            return super().log_ratio(x - self._centre(condition), level, {})

    chain = Shifted(EDMHeun(18), MODEL.denoiser(EDM()), TruthCritic(REAL, MODEL, EDM()))
    labels = torch.where(torch.arange(1000) % 3 == 0, 1, -1)
    r = DiffRS(chain, HEUN_CONSTANTS).sample(1000, batch_size=100, mode=mode, condition={"class_labels": labels})
    assert torch.equal(torch.sign(r.x[:, 0]).long(), r.condition["class_labels"])
    if mode == "slots":
        assert torch.equal(r.condition["class_labels"], labels)


@pytest.mark.parametrize(
    "base",
    [
        EDMHeun(12, churn=20.0),
        Ancestral(24),
        DDIM(24),
        sampler("dpm-solver++2s", steps=24),
        Ancestral(12, variance="posterior"),
    ],
    ids=lambda b: b.name,
)
@pytest.mark.parametrize("schedule", [VPLinear(), EDM(0.01, 40.0), VE()], ids=lambda s: type(s).__name__)
def test_rejection_moves_any_base_sampler_towards_the_data(base, schedule):
    model = MODEL.denoiser(schedule, covariance="diagonal")
    chain = SamplerChain(base, model, TruthCritic(REAL, MODEL, schedule))
    before = (base.sample(model, n=1500).x < 0).double().mean().item()
    r = DiffRS(chain, calibrate(chain, 500, batch_size=500).constants(0.95)).sample(1500, batch_size=500)
    after = (r.x < 0).double().mean().item()
    assert abs(after - 0.5) < abs(before - 0.5) - 0.08


def test_min_level_skips_early_tests_but_keeps_the_parent_right():
    r = DiffRS(heun_chain(), HEUN_CONSTANTS, min_level=8).sample(2000, batch_size=1000)
    assert r.tested[:, :9].sum() == 0
    assert (r.x < 0).double().mean().item() > 0.3
    late = DiffRS(heun_chain(), HEUN_CONSTANTS, max_level=17).sample(500, batch_size=500)
    assert late.tested[0, 18] == 0


def alone(rule, seed, index):
    """One sample by the words of the rule, one draw after the other: (x, network evaluations, critic evaluations)."""
    chain, noise, n = rule.chain, Noise(seed, torch.tensor([index])), rule.chain.steps
    tests = set(rule.test_levels or range(rule.min_level + 1, rule.last_level + 1))
    counts = {"normal": 0, "uniform": 0, "critic": 0, "nfe": 0}

    def draw(kind):
        counts[kind] += 1
        return torch.tensor([counts[kind] - 1])

    def ratio(x, level):
        counts["critic"] += 1
        return float(chain.log_ratio(x, torch.tensor([level]), {}))

    def passes(bound):
        return math.log(float(noise.uniform(draw("uniform")))) <= bound

    def start():
        x = chain.prior(noise, draw("normal"))
        while rule.min_level == 0:
            found = ratio(x, 0)
            if passes(found - float(rule.constants.log_m_marginal[0])):
                return x, found
            x = chain.prior(noise, draw("normal"))
        return x, None

    (x, parent), level = start(), 0
    while level < n:
        x = chain.step(x, torch.tensor([level]), noise, draw("normal"), {})
        counts["nfe"] += chain.cost(level)
        level += 1
        if level == rule.min_level:
            parent = ratio(x, level)
        first = True
        while level in tests:
            found = ratio(x, level)
            bound = rule.constants.log_m_transition[level] + parent if first else rule.constants.log_m_marginal[level]
            first = False
            if passes(found - float(bound)):
                parent = found
                break
            to = max(0, level - rule.backsteps)
            while to > rule.min_level and to not in tests:
                to -= 1
            x = chain.forward(x, torch.tensor([level]), torch.tensor([to]), noise, draw("normal"))
            level = to
            if level == 0 and rule.min_level == 0:
                found = ratio(x, 0)
                parent = found
                if not passes(found - float(rule.constants.log_m_marginal[0])):
                    x, parent = start()
            elif level == rule.min_level:
                parent = ratio(x, level)
    return x[0], counts["nfe"], counts["critic"]


@pytest.mark.parametrize(
    "options",
    [{}, {"backsteps": 2}, {"min_level": 1}, {"max_level": 2}, {"test_levels": (1, 3)}, {"test_levels": [3]},
     {"test_levels": (2, 3), "backsteps": 2}, {"min_level": 1, "test_levels": (3,)}],
)  # fmt: skip
def test_every_sample_is_what_the_rule_makes_of_it_alone(options):
    rule = DiffRS(FourStates(), PERCENTILE_90, **options)
    found = rule.sample(120, seed=8, batch_size=7)
    each = [alone(rule, 8, index) for index in range(120)]
    assert found.x.tolist() == [int(x) for x, _, _ in each]
    assert found.nfe.tolist() == [nfe for _, nfe, _ in each]
    assert found.critic_evaluations == sum(critic for _, _, critic in each)
    assert found.nfe.max() > 3


def test_constants_of_skipped_levels_are_relative_to_the_level_tested_before():
    generator = torch.Generator().manual_seed(0)
    known = Calibration(torch.randn(50, 7, generator=generator, dtype=F64))
    chain = SamplerChain(EDMHeun(6), MODEL.denoiser(EDM()), TruthCritic(REAL, MODEL, EDM()))
    rule = DiffRS(chain, known.constants(0.5), test_levels=(5, 2))
    assert rule.test_levels == (2, 5)
    assert DiffRS(chain, known.constants(0.5), test_levels="2/5").test_levels == (2, 5)
    assert DiffRS(chain, known.constants(0.5), test_levels="5, 2").test_levels == (2, 5)
    assert rule.parents.tolist() == [-1, 0, 0, 2, 2, 2, 5]
    assert DiffRS(chain, known.constants(0.5)).parents.tolist() == [-1, 0, 1, 2, 3, 4, 5]
    assert DiffRS(chain, known.constants(0.5), min_level=1, test_levels=(4,)).parents.tolist() == [-1, 0, 1, 1, 1, 4, 4]
    jumps = known.constants(0.5, floor=False, parents=rule.parents).log_m_transition
    assert jumps[5] == torch.quantile(known.log_ratios[:, 5] - known.log_ratios[:, 2], 0.5)
    assert jumps[2] == torch.quantile(known.log_ratios[:, 2] - known.log_ratios[:, 0], 0.5)


def test_backsteps_never_climb_past_the_prior():
    r = DiffRS(heun_chain(), HEUN_CONSTANTS, backsteps=5).sample(500, batch_size=250)
    assert r.x.isfinite().all()
    assert r.moves[1:6, 0].sum() > 0


def test_probabilities_in_place_of_logits_are_noticed():
    class Probabilities(FourStates):
        def log_ratio(self, x, level, condition):
            return torch.sigmoid(super().log_ratio(x, level, condition))

    with pytest.warns(UserWarning, match="seems to give probabilities, where logits are wanted"):
        calibrate(Probabilities(), 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(FourStates(), 200)
        calibrate(FourStates(scale=0.0), 200)  # sees nothing, and rightly says 0


def test_calibrations_are_stored_with_what_they_belong_to(tmp_path):
    chain = heun_chain()
    c = calibrate(chain, 50, batch_size=25)
    c.save(tmp_path / "c.safetensors")
    back = Calibration.load(tmp_path / "c.safetensors")
    assert torch.equal(back.log_ratios, c.log_ratios)
    assert back.fingerprint == chain.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
    (tmp_path / "bad.safetensors").write_bytes(b"not a tensor file")
    c.save(tmp_path / "new" / "c.safetensors")
    assert torch.equal(Calibration.load(tmp_path / "new" / "c.safetensors").log_ratios, c.log_ratios)
    with pytest.raises(ValueError, match="cannot be read as a calibration, delete it to measure again"):
        Calibration.load(tmp_path / "bad.safetensors")


class Broken(FourStates):
    def log_ratio(self, x, level, condition):
        return super().log_ratio(x, level, condition) * torch.where(level == 2, torch.nan, 1.0)


class Blinded(TruthCritic):
    """Knows nothing below sigma = 3."""

    def logit(self, x_t, t, **condition):
        return super().logit(x_t, t) * torch.where(self.schedule.sigma(t) < 3.0, torch.nan, 1.0)


class Hopeless(FourStates):
    def log_ratio(self, x, level, condition):
        return super().log_ratio(x, level, condition) - 1000.0


ZERO = Constants(torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64))
TWO = GaussianMixture([1.0], [[0.0, 0.0]], 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Calibration(torch.zeros(3, 2, dtype=F64)).constants(75), "for the 75th percentile give 0.75"),
        (lambda: DiffRS(FourStates(), HEUN_CONSTANTS), "for 18 steps, the sampler makes 3"),
        (lambda: DiffRS(FourStates(), ZERO, max_nfe=2), "max_nfe=2 is less than the 3 evaluations"),
        (lambda: DiffRS(FourStates(), ZERO, backsteps=0), "backsteps must be at least 1"),
        (lambda: DiffRS(FourStates(), ZERO, min_level=3), "min_level must lie in 0 ... 2"),
        (lambda: DiffRS(FourStates(), ZERO, max_level=9), "max_level must lie in 1 ... 3"),
        (lambda: DiffRS(FourStates(), ZERO, test_levels=(1, 4)), r"levels in 1 ... 3, at least one, got \[1, 4\]"),
        (
            lambda: DiffRS(FourStates(), ZERO, test_levels="1/two"),
            "a level of test_levels must be a whole number, got 'two'",
        ),
        (lambda: DiffRS(FourStates(), ZERO, test_levels=()), r"at least one, got \[\]"),
        (
            lambda: DiffRS(FourStates(), ZERO, test_levels=(1.5,)),
            "a level of test_levels must be a whole number, got 1.5",
        ),
        (lambda: DiffRS(FourStates(), ZERO, min_level=1, test_levels=(1,)), "levels in 2 ... 3"),
        (lambda: DiffRS(FourStates(), ZERO, on_reject="resample", test_levels=(1,)), "belongs to on_reject='forward'"),
        (lambda: DiffRS(FourStates(), ZERO, on_reject="forwards"), "Did you mean 'forward'"),
        (lambda: DiffRS(heun_chain(), HEUN_CONSTANTS, on_reject="resample"), "deterministic step"),
        (lambda: DiffRS(FourStates(), ZERO).sample(0), "n must be at least 1"),
        (lambda: DiffRS(FourStates(), ZERO).sample(2.5), "n must be at least 1, a whole number, got 2.5"),
        (lambda: DiffRS(FourStates(), ZERO).sample(4, batch_size=0), "batch_size must be at least 1"),
        (lambda: DiffRS(FourStates(), ZERO).sample(4, batch_size=1.5), "batch_size must be a whole number, got 1.5"),
        (lambda: DiffRS(FourStates(), ZERO).sample(indices=[]), r"indices must be whole numbers, at least one"),
        (lambda: DiffRS(FourStates(), ZERO).sample(indices=torch.rand(3)), r"got shape \(3,\) of float32"),
        (lambda: DiffRS(FourStates(), ZERO).sample(5, indices=[1, 2]), "2 indices were given for n=5"),
        (lambda: DiffRS(FourStates(), ZERO, max_nfe=4.5), "max_nfe must be a whole number, got 4.5"),
        (lambda: DiffRS(FourStates(), ZERO, backsteps=1.5), "backsteps must be a whole number, got 1.5"),
        (lambda: DiffRS(FourStates(), ZERO, prior_rounds=0), "prior_rounds must be at least 1"),
        (lambda: calibrate(FourStates(), 1), "n must be a whole number >= 2 for a calibration, got 1"),
        (lambda: calibrate(FourStates(), 8, batch_size=0), "batch_size must be a whole number >= 1"),
        (
            lambda: calibrate(FourStates(), 8, condition={"class_labels": torch.zeros(3)}),
            "class_labels has 3 rows for 8 warm-up samples",
        ),
        (
            lambda: Calibration(torch.zeros(3, 2, dtype=F64)).constants("high"),
            r"percentile must lie in \[0, 1\], got 'high'",
        ),
        (lambda: Calibration(torch.zeros(0, 2, dtype=F64)), r"must be \(samples, levels\), got shape \(0, 2\)"),
        (
            lambda: DiffRS(FourStates(), ZERO).sample(4, condition={"class_labels": torch.zeros(3)}),
            "3 rows for 4 samples",
        ),
        (lambda: DiffRS(Broken(), ZERO).sample(8), "NaN or infinity at level 2"),
        (
            lambda: calibrate(SamplerChain(EDMHeun(6), MODEL.denoiser(EDM()), Blinded(REAL, MODEL, EDM())), 4),
            r"NaN or infinity at level 3 \(sigma/alpha = 0.9654",
        ),
        (lambda: DiffRS(Hopeless(), ZERO).sample(8), "prior test accepts only 0"),
        (
            lambda: SamplerChain(sampler("dpm-solver++"), MODEL.denoiser(EDM()), TruthCritic(REAL, MODEL, EDM())),
            "row by row",
        ),
        (
            lambda: SamplerChain(DDIM(5), TWO.denoiser(EDM()), TruthCritic(REAL, MODEL, EDM())),
            r"shape \(1,\), the model makes \(2,\)",
        ),
        (lambda: TruthCritic(REAL, TWO, EDM()), "same shape"),
        (lambda: Constants(torch.zeros(3), torch.zeros(4)), "one number per level"),
    ],
)
def test_wrong_calls_are_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
