"""Discriminator Guidance with exact critics: affine maps and laws in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from trueward.critics import Critic, TruthCritic
from trueward.refinement import DiscriminatorGuidance
from trueward.samplers import DDIM, EDMHeun, sampler
from trueward.schedules import EDM, VE, VPCosine, VPLinear
from trueward.truth import Gaussian, GaussianMixture

F64 = torch.float64
ALL = (0.0, float("inf"))


def affine(mean, variance, weight, steps, noise_range=ALL, second_weight=None):
    """(b, A) of the guided Heun map x_0 = A z + b from latents x = 80 z."""
    s = EDM()
    real, model = Gaussian([0.0], 1.0), Gaussian([mean], variance)
    guided = DiscriminatorGuidance(
        model.denoiser(s), TruthCritic(real, model, s), weight, second_weight=second_weight, noise_range=noise_range
    )
    x = EDMHeun(steps).sample(guided, torch.tensor([[0.0], [80.0]], dtype=F64)).x
    return x[0].item(), (x[1] - x[0]).item()


@pytest.mark.parametrize(
    ("weight", "b"), [(0.0, 0.493749), (0.5, 0.246875), (1.0, 0.0), (2.0, -0.493749), (-1.0, 0.987499)]
)
def test_the_weight_moves_the_mean_linearly(weight, b):
    assert affine(0.5, 1.0, weight, 256)[0] == pytest.approx(b, abs=1e-6)


def test_the_default_window_changes_what_it_is_known_to_change():
    assert affine(0.5, 1.0, 1.0, 18) == pytest.approx((0.0, 1.044729), abs=1e-6)
    assert affine(0.5, 1.0, 1.0, 18, (0.0446877, math.inf))[0] == pytest.approx(0.000344, abs=1e-6)
    assert affine(0.5, 1.0, 2.0, 18, (0.0446877, math.inf))[0] == pytest.approx(-0.492781, abs=1e-6)


HEUN = {
    (0.0, 0.0): 0.493470,
    (1.0, 0.0): 0.321313,
    (2.0, 0.0): 0.149156,
    (0.0, 1.0): 0.172157,
    (0.0, 2.0): -0.149156,
    (1.0, 1.0): 0.0,
    (2.0, 2.0): -0.493470,
}
WINDOWED = {
    (0.0, 0.0): 0.493470,
    (1.0, 0.0): 0.321414,
    (2.0, 0.0): 0.149358,
    (1.0, 1.0): 0.000344,
    (2.0, 2.0): -0.492781,
}


@pytest.mark.parametrize(
    ("weights", "window", "b"),
    [(w, ALL, b) for w, b in HEUN.items()] + [(w, (0.0446877, math.inf), b) for w, b in WINDOWED.items()],
)
def test_both_slopes_of_a_heun_step_have_their_own_weight(weights, window, b):
    # (1, 0) and (0, 1) differ, so weights that are swapped, averaged or shared fail
    assert affine(0.5, 1.0, weights[0], 18, window, weights[1]) == pytest.approx((b, 1.044729), abs=1e-6)


def test_the_official_setting_is_one_argument_away_from_the_weight():
    assert affine(0.5, 1.0, 2.0, 18, (0.0446877, math.inf), second_weight=0.0)[0] == pytest.approx(0.149358, abs=1e-6)


@pytest.mark.parametrize("name", ["edm", "dpm-solver-2"])
def test_the_second_weight_reaches_guidance_inside_other_wrappers_and_rows_on_different_levels(name):
    from trueward.denoisers import Rescheduled
    from trueward.samplers.run import Run

    s = EDM()
    real, model = Gaussian([0.0], 1.0), Gaussian([0.5], 1.0)
    guided = DiscriminatorGuidance(
        model.denoiser(s), TruthCritic(real, model, s), 2.0, second_weight=0.0, noise_range=ALL
    )
    x = torch.linspace(-60, 60, 7, dtype=F64)[:, None]
    solver = sampler(name, steps=6)
    expected = solver.sample(guided, x).x
    assert torch.allclose(solver.sample(Rescheduled(guided, s), x).x, expected, atol=1e-9)
    shared = DiscriminatorGuidance(model.denoiser(s), TruthCritic(real, model, s), 2.0, noise_range=ALL)
    assert (solver.sample(shared, x).x - expected).abs().max() > 0.1
    rows = x
    for level in range(solver.plan(s).steps):  # the row-wise path, all rows on one level
        rows = solver.step(Run(guided, solver.plan(s), None, {}), rows, torch.full((7,), level))
    assert torch.allclose(rows, expected, atol=1e-9)


def test_a_wrong_variance_is_repaired_too():
    assert affine(1.0, 4.0, 0.0, 18) == pytest.approx((0.974099, 2.072063), abs=1e-6)
    assert affine(1.0, 4.0, 1.0, 18) == pytest.approx((0.0, 1.044729), abs=1e-6)
    assert affine(1.0, 4.0, 2.0, 18, second_weight=0.0) == pytest.approx((0.146142, 1.188673), abs=1e-6)
    assert affine(1.0, 4.0, 2.0, 256, second_weight=0.0) == pytest.approx((0.006916, 1.008619), abs=1e-6)


@pytest.mark.parametrize("schedule", [EDM(), VE(), VPLinear()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("critic_schedule", [EDM(), VPLinear()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["edm", "ddim", "dpm-solver++", "dpm-solver"])
def test_with_the_exact_critic_the_wrong_model_becomes_the_right_one(schedule, critic_schedule, name):
    real = GaussianMixture([0.5, 0.5], [[-0.5, 0.0], [0.5, 0.3]], 0.04)
    model = GaussianMixture([0.2, 0.8], [[-0.4, 0.1], [0.6, 0.3]], 0.06)
    critic = TruthCritic(real, model, critic_schedule)
    if critic_schedule != schedule:  # a critic knows its own levels only
        inside = (math.exp(-critic._highest / 2), math.exp(-critic._lowest / 2))
        own = (math.exp(-schedule.log_snr(schedule.t_min) / 2), math.exp(-schedule.log_snr(schedule.t_max) / 2))
        if not (inside[0] <= own[0] * (1 + 1e-9) and own[1] <= inside[1] * (1 + 1e-9)):
            pytest.skip("the schedule goes beyond the levels of the critic")
    guided = DiscriminatorGuidance(model.denoiser(schedule), critic, 1.0, noise_range=ALL)
    x_T = torch.linspace(-1.5, 1.5, 10, dtype=F64).view(5, 2) * schedule.prior_std()
    solver = sampler(name, steps=12)
    assert torch.allclose(solver.sample(guided, x_T).x, solver.sample(real.denoiser(schedule), x_T).x, atol=1e-8)


def test_fakes_define_the_correction_not_the_models_nominal_score():
    # score -1.1 x / (1 + s^2): its samples have variance 0.416205; with their exact ratio the output is N(0, 1)
    from trueward.denoisers import Denoiser, Posterior

    class TooSteep(Denoiser):
        def forward(self, x_t, t, **condition):
            alpha, sigma = self.schedule.coefficients(t, x_t)
            return Posterior(x_t, alpha, sigma, eps=1.1 * x_t * sigma / (1 + sigma**2))

    s = EDM(sigma_min=1e-3)
    d = TooSteep(s, shape=(1,))
    x_T = torch.tensor([[80.0]], dtype=F64)
    plain = EDMHeun(400).sample(d, x_T).x.item()
    assert plain == pytest.approx(0.645140, abs=1e-3)
    critic = TruthCritic(Gaussian([0.0], 1.0), Gaussian([0.0], 0.416205), s)
    assert EDMHeun(400).sample(DiscriminatorGuidance(d, critic, 1.0, noise_range=ALL), x_T).x.item() == pytest.approx(
        1.0, abs=2e-3
    )
    blind = TruthCritic(Gaussian([0.0], 1.0), Gaussian([0.0], 1.0), s)
    assert EDMHeun(400).sample(DiscriminatorGuidance(d, blind, 1.0, noise_range=ALL), x_T).x.item() == pytest.approx(
        plain, abs=1e-9
    )


class Linear(Critic):
    """Logit 20 + x, with the number of rows it was asked about."""

    def __init__(self, schedule, level=20.0):
        super().__init__(schedule)
        self.level, self.rows = level, 0

    def logit(self, x_t, t, **condition):
        self.rows += len(x_t)
        return self.level + x_t.flatten(1).sum(1)


def test_saturated_logits_still_have_a_gradient():
    gradient, logit = Linear(EDM()).gradient(torch.zeros(2, 3), 1.0)
    assert torch.allclose(gradient, torch.ones(2, 3))
    assert torch.allclose(logit, torch.full((2,), 20.0))


def test_the_window_is_a_mask_per_row():
    model = Gaussian([0.0], 1.0)
    guided = DiscriminatorGuidance(model.denoiser(EDM()), Linear(EDM()), 1.0)
    x = torch.zeros(2, 1, dtype=F64)
    t = torch.tensor([0.03, 1.0], dtype=F64)
    change = guided(x, t).mean - model.denoiser(EDM())(x, t).mean
    assert change[0].item() == 0.0
    assert change[1].item() == pytest.approx(1.0)


def test_the_critic_is_asked_only_where_it_is_used():
    model = Gaussian([0.0], 1.0)
    critic = Linear(EDM())
    EDMHeun(18).sample(DiscriminatorGuidance(model.denoiser(EDM()), critic, 1.0), n=1)
    assert critic.rows == 29  # of 35 evaluations
    critic.rows = 0
    run = EDMHeun(18).sample(DiscriminatorGuidance(model.denoiser(EDM()), critic, 1.0, second_weight=0.0), n=1)
    assert critic.rows == 15
    assert run.nfe == 35
    critic.rows = 0
    plain = EDMHeun(18).sample(model.denoiser(EDM()), n=3).x
    assert torch.equal(EDMHeun(18).sample(DiscriminatorGuidance(model.denoiser(EDM()), critic, 0.0), n=3).x, plain)
    assert critic.rows == 0


@pytest.mark.parametrize(("top", "at_top", "below"), [(1.0, 0.2027326, 0.1438410), (80.0, 7.8107e-5, 0.3464955)])
def test_the_divergence_is_what_the_score_gap_adds_up_to(top, at_top, below):
    # KL(q_0||p_0) = KL(q_S||p_S) + int_0^S s E_q ||grad log q/p||^2 ds: the critic's gradient is the whole gap
    import numpy as np

    q, p = Gaussian([0.0], 1.0), Gaussian([1.0], 2.0)
    schedule = EDM(1e-9, 100.0)
    critic = TruthCritic(q, p, schedule)
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)  # E_q of a quadratic, exactly
    points, widths = (0.5 * top * v for v in np.polynomial.legendre.leggauss(200))
    total = 0.0
    for level, width in zip(points + 0.5 * top, widths):
        x = torch.as_tensor(nodes * math.sqrt(1.0 + level**2))[:, None]
        gradient, _ = critic.gradient(x, float(level))
        total += width * level * float((weights / weights.sum()) @ gradient[:, 0].square().numpy())
    kl = q.marginal(schedule, top).kl(p.marginal(schedule, top)).value
    assert kl == pytest.approx(at_top, abs=1e-6)
    assert total == pytest.approx(below, abs=1e-6)
    assert kl + total == pytest.approx(0.3465736, abs=1e-6)
    assert q.kl(p).value == pytest.approx(0.3465736, abs=1e-6)


@pytest.mark.parametrize(
    ("sigma", "tau", "alpha", "cosine"),
    [
        (0.002, 3.98420e-5, 0.999998, 1.0228926e-4),
        (0.05, 0.01159398, 0.998752, 0.02504122),
        (1.0, 0.25896026, 0.707107, 0.49604986),
        (10.0, 0.67604496, 0.0995037, 0.93604634),
        (80.0, 0.93351114, 0.01249902, 0.99197963),
    ],
)
def test_a_critic_is_asked_at_its_own_time_of_equal_noise(sigma, tau, alpha, cosine):
    class Asked(Critic):
        def logit(self, x_t, t, **condition):
            self.found = x_t.item(), t.item()
            return x_t[:, 0]

    for schedule, time in ((VPLinear(t_min=1e-5), tau), (VPCosine(t_min=1e-5), cosine)):
        critic = Asked(schedule)
        critic.log_ratio(torch.ones(1, 1, dtype=F64), sigma, schedule=EDM())
        assert critic.found == pytest.approx((alpha, time), rel=2e-6)


def test_gradients_follow_the_chain_rule_between_schedules():
    real = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.25)
    model = GaussianMixture([0.2, 0.8], [[-1.0], [1.0]], 0.25)
    x = torch.tensor([[0.7]], dtype=F64)
    for own in (EDM(), VPLinear(t_min=1e-5)):
        gradient, logit = TruthCritic(real, model, own).gradient(x, 2.0, schedule=EDM())
        assert logit.item() == pytest.approx(-0.0934352, abs=1e-6)
        assert gradient.item() == pytest.approx(-0.1251570, abs=1e-6)


def test_weights_may_depend_on_the_noise_and_doubtful_rows_get_a_boost():
    model = Gaussian([0.0], 1.0)
    d = model.denoiser(EDM())
    x = torch.zeros(2, 1, dtype=F64)
    weighted = DiscriminatorGuidance(d, Linear(EDM()), lambda level: 0.5 * level)
    assert weighted(x, 2.0).mean[0].item() == pytest.approx(4.0)
    doubtful = DiscriminatorGuidance(d, Linear(EDM(), level=-1.0), 1.0, boost=2.0)
    assert doubtful(x, 1.0).mean[0].item() == pytest.approx(2.0)


class Flat(Critic):
    def logit(self, x_t, t, **condition):
        return torch.zeros(len(x_t))


class Bad(Critic):
    def logit(self, x_t, t, **condition):
        return x_t


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: DiscriminatorGuidance(
                Gaussian([0.0], 1.0).denoiser(EDM()), Linear(EDM()), 1.0, noise_range=(1.0, 0.5)
            ),
            "low < high",
        ),
        (lambda: DiscriminatorGuidance(Gaussian([0.0], 1.0).denoiser(EDM()), Critic_of_two(), 1.0), "shape"),
        (lambda: weighted(math.nan), "weight must be a finite number or a function of sigma/alpha, got nan"),
        (lambda: weighted("strong"), "weight must be a finite number or a function .* got 'strong'"),
        (lambda: weighted(None), "weight must be a finite number or a function .* got None"),
        (lambda: weighted(1.0, second_weight=math.inf), "second_weight must be a finite number .* got inf"),
        (lambda: weighted(1.0, boost=math.nan), "boost must be a finite number, got nan"),
        (lambda: weighted(lambda s: s * math.nan).correction(torch.zeros(2, 1), 0.5), "weight function answered NaN"),
        (
            lambda: weighted(lambda s: torch.ones(3)).correction(torch.zeros(2, 1), 0.5),
            r"one number per row, \(2,\), but this one gave \(3,\)",
        ),
        (lambda: Flat(EDM()).gradient(torch.zeros(2, 1), 1.0), "no_grad"),
        (lambda: Bad(EDM()).log_ratio(torch.zeros(2, 3), 1.0), "one logit per row"),
        (
            lambda: TruthCritic(Gaussian([0.0], 1.0), Gaussian([0.0], 1.0), EDM()).log_ratio(torch.zeros(2, 3), 1.0),
            "takes samples of shape",
        ),
    ],
)
def test_wrong_calls_are_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def weighted(weight, **options):
    g = Gaussian([0.0], 1.0)
    return DiscriminatorGuidance(g.denoiser(EDM()), TruthCritic(g, Gaussian([0.5], 1.0), EDM()), weight, **options)


def test_a_weight_function_may_answer_one_number_for_all_rows():
    x = torch.linspace(-1.0, 1.0, 4, dtype=F64)[:, None]
    constant, function = weighted(0.5).correction(x, 0.5), weighted(lambda s: 0.5).correction(x, 0.5)
    assert torch.equal(constant[0], function[0])
    assert constant[0].abs().min() > 0


def Critic_of_two():
    g = Gaussian([0.0, 0.0], 1.0)
    return TruthCritic(g, g, EDM())


def test_deterministic_samplers_stay_deterministic_under_guidance():
    real, model, s = Gaussian([0.0], 1.0), Gaussian([0.5], 1.0), VPLinear()
    guided = DiscriminatorGuidance(model.denoiser(s), TruthCritic(real, model, s), 1.0)
    assert torch.equal(DDIM(5).sample(guided, n=4).x, DDIM(5).sample(guided, n=4).x)
