"""The algebra of Analytic-DPM against closed forms and published numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from covariance.exact import (
    LINEAR,
    IsotropicGaussian,
    TwoPoints,
    mixture_gamma,
    node,
    two_point_gamma,
    two_point_law,
    two_points,
)
from trueward.covariance import (
    AnalyticCovariance,
    GammaTable,
    optimal_variance,
    posterior_variance,
    trajectory,
    variance_bounds,
)
from trueward.samplers import DDIM, Ancestral
from trueward.samplers.ancestral import pixel_variance
from trueward.samplers.reverse_step import ReverseSteps
from trueward.schedules import EDM, VE, DiscreteSchedule, VPLinear


def cosine(steps):
    return DiscreteSchedule.cosine(steps, half_log_snr_clip=-100.0)


def last_noisy_bounds(schedule, levels, eta):
    times = sorted(trajectory(schedule, levels).times)
    return variance_bounds(schedule, times[0], times[1], eta)


@pytest.mark.parametrize(
    ("schedule", "levels", "lower", "ddpm", "ddim"),
    [
        (LINEAR, (10, 25, 50, 100), (9.99e-5, 9.96e-5, 9.84e-5, 9.55e-5), (1.45e-1, 2.24e-2, 6.20e-3, 2.10e-3), (1.37e-1, 1.96e-2, 4.82e-3, 1.36e-3)),
        (cosine(1000), (10, 25, 50, 100), (4.12e-5, 4.10e-5, 4.04e-5, 3.89e-5), (3.56e-2, 6.15e-3, 1.85e-3, 6.80e-4), (3.33e-2, 5.22e-3, 1.37e-3, 4.18e-4)),
        (cosine(4000), (25, 50, 100, 200), (9.85e-6, 9.81e-6, 9.72e-6, 9.51e-6), (5.93e-3, 1.84e-3, 6.44e-4, 2.61e-4), (5.46e-3, 1.59e-3, 5.03e-4, 1.77e-4)),
    ],
    ids=["linear", "cosine-1000", "cosine-4000"],
)  # fmt: skip
def test_bounds_of_the_last_noisy_step_are_the_published_ones(schedule, levels, lower, ddpm, ddim):
    # Bao et al. (2022), table 7
    for k, low, high_1, high_0 in zip(levels, lower, ddpm, ddim):
        got = last_noisy_bounds(schedule, k, 1.0)
        assert float(got[0]) == pytest.approx(low, rel=5e-3)
        assert float(got[1]) == pytest.approx(high_1, rel=5e-3)
        low_0, got_0 = last_noisy_bounds(schedule, k, 0.0)
        assert float(low_0) == 0.0
        assert float(got_0) == pytest.approx(high_0, rel=5e-3)


def test_both_upper_bounds_of_the_step_to_the_first_node():
    t = node(112)
    for eta, first, second in ((1.0, 1.4457e-1, 9.9862e-1), (0.0, 1.3716e-1, 9.4801e-1)):
        assert float(variance_bounds(LINEAR, node(1), t, eta, None)[1]) == pytest.approx(first, rel=1e-4)
        step = ReverseSteps.between(LINEAR, node(1), t, eta)
        assert float(step.lambda2 + step.kappa**2) == pytest.approx(second, rel=1e-4)


def test_pixel_variance_bounds_the_mean_absolute_change():
    assert pixel_variance(1, (-1, 1)) == pytest.approx(9.66272e-5, rel=1e-5)
    assert pixel_variance(2, (-1, 1)) == pytest.approx(3.86509e-4, rel=1e-5)
    assert pixel_variance(1, (0, 16), 17) == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_coefficients_of_a_step_agree_with_their_definition_and_keep_their_digits(eta):
    for schedule in (LINEAR, VPLinear(), EDM(), VE()):
        s, t = schedule.t_min + 0.3 * (schedule.t_max - schedule.t_min), schedule.t_max
        step = ReverseSteps.between(schedule, s, t, eta)
        (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.at(s), schedule.at(t)
        ratio = alpha_t / alpha_s
        beta = sigma_t**2 - ratio**2 * sigma_s**2
        beta_tilde = beta * sigma_s**2 / sigma_t**2
        assert float(step.beta) == pytest.approx(beta, rel=1e-12)
        assert float(step.lambda2) == pytest.approx(eta**2 * beta_tilde, rel=1e-12, abs=1e-300)
        direction = math.sqrt(sigma_s**2 - eta**2 * beta_tilde)
        assert float(step.kappa) == pytest.approx(alpha_s - direction * alpha_t / sigma_t, rel=1e-11)
    # a step so short that alpha_s - direction alpha_t / sigma_t would be all rounding: kappa ~ alpha_s lost (1 + eta^2) / 2
    short = ReverseSteps.between(VPLinear(), 0.5 - 1e-13, 0.5, eta)
    expected = float(short.alpha_s * short.lost) * (1 + eta**2) / 2
    assert float(short.kappa) == pytest.approx(expected, rel=1e-9)


def test_the_data_are_one_step_further_for_every_eta():
    for eta in (0.0, 0.5, 1.0):
        gamma = 0.4
        c = posterior_variance(LINEAR, node(300), gamma, None)
        assert float(optimal_variance(LINEAR, 0.0, node(300), gamma, eta, None)) == pytest.approx(float(c), rel=1e-12)


def test_two_point_gamma_and_posterior_variance():
    known = {
        100: (0.95765182, 0.00486177),
        200: (0.53390651, 0.24113907),
        300: (0.62130358, 0.57659507),
        500: (0.92143694, 0.92112918),
    }
    for n, (gamma, c) in known.items():
        got = two_point_gamma(n)
        assert got == pytest.approx(gamma, abs=1e-6)
        assert float(posterior_variance(LINEAR, node(n), got, (-1, 1))) == pytest.approx(c, abs=1e-6)
        # and the direct meaning of C: the mean posterior variance
        x, w = two_point_law(n)
        assert float((w * two_points(n, x)[1]).sum()) == pytest.approx(c, abs=1e-6)
    assert float(posterior_variance(LINEAR, 1.0, two_point_gamma(1000), (-1, 1))) == pytest.approx(0.99996, abs=1e-5)


def test_mixture_variances_for_every_eta():
    gammas = {n: mixture_gamma(n) for n in (112, 300, 1000)}
    assert gammas[112] == pytest.approx(0.5042141176, rel=1e-8)
    assert gammas[300] == pytest.approx(0.7999755471, rel=1e-8)
    known = {
        (1, 112): (7.1724978670e-2, 6.8002286375e-2, 6.8519786972e-2),
        (100, 300): (3.2876180325e-1, 1.4375640641e-1, 1.8127697120e-1),
        (500, 1000): (9.5127438689e-1, 2.9021295835e-2, 2.5943856996e-1),
    }
    for (s, t), values in known.items():
        for eta, value in zip((1.0, 0.0, 0.5), values):
            got = optimal_variance(LINEAR, node(s), node(t), gammas[t], eta, None)
            assert float(got) == pytest.approx(value, rel=1e-6)


def test_the_ddpm_special_case_of_the_optimal_variance():
    for schedule in (LINEAR, EDM()):
        s, t = schedule.t_min + 0.2 * (schedule.t_max - schedule.t_min), schedule.t_max * 0.7
        (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.at(s), schedule.at(t)
        beta = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
        expected = beta / (alpha_t / alpha_s) ** 2 * (1 - beta * 0.6 / sigma_t**2)
        assert float(optimal_variance(schedule, s, t, 0.6, 1.0, None)) == pytest.approx(expected, rel=1e-10)


def edge_kl(variance, step, residual):
    return 0.5 * (step.lambda2 / variance - 1 + np.log(variance / step.lambda2) + step.kappa**2 * residual / variance)


@pytest.mark.parametrize(
    ("s", "t", "analytic", "beta", "beta_tilde"),
    [
        (1, 112, 2.44091, 3.12316, 65.4352),
        (112, 223, 0.507483, 0.512496, 0.879635),
        (223, 334, 0.257892, 0.257912, 0.337476),
        (100, 300, 0.865270, 0.865623, 2.32185),
    ],
)
def test_the_analytic_variance_has_the_least_divergence_of_a_step(s, t, analytic, beta, beta_tilde):
    step = ReverseSteps.between(LINEAR, node(s), node(t))
    residual = float(posterior_variance(LINEAR, node(t), two_point_gamma(t), (-1, 1)))
    best = optimal_variance(LINEAR, node(s), node(t), two_point_gamma(t))
    got = [float(edge_kl(v, step, residual)) for v in (best, step.beta, step.beta_tilde)]
    assert got == pytest.approx([analytic, beta, beta_tilde], rel=1e-4)
    assert got[0] == pytest.approx(0.5 * math.log(float(best / step.lambda2)), rel=1e-9)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert edge_kl(best * factor, step, residual) > got[0]


def test_estimates_outside_the_bounds_are_clipped():
    s, t = node(500), node(1000)
    for eta in (0.0, 0.5, 1.0):
        step = ReverseSteps.between(LINEAR, s, t, eta)
        assert float(optimal_variance(LINEAR, s, t, 1.02, eta)) == float(step.lambda2)
        assert float(optimal_variance(LINEAR, s, t, 0.0, eta)) == pytest.approx(float(step.lambda2 + step.kappa**2))
        ratio = math.exp(-LINEAR.log_snr(t).item())
        unbounded = optimal_variance(LINEAR, s, t, 0.0, eta, None)
        assert float(unbounded) == pytest.approx(float(step.lambda2 + step.kappa**2 * ratio))


def test_deterministic_steps_approach_the_ode():
    def spent(steps):
        nodes = np.linspace(200, 800, steps + 1).round().astype(int)
        gammas = np.array([two_point_gamma(n, 20_001) for n in nodes[1:]])
        return float(optimal_variance(LINEAR, node(nodes[:-1]), node(nodes[1:]), gammas, 0.0).sum())

    assert spent(200) / spent(100) == pytest.approx(0.5, abs=0.05)
    gamma = two_point_gamma(500)
    step = ReverseSteps.between(LINEAR, node(499), node(500))
    assert float(optimal_variance(LINEAR, node(499), node(500), gamma) / step.beta) == pytest.approx(1.0, abs=0.02)


def gaussian_table(schedule=LINEAR, c2=0.25, times=None):
    times = torch.arange(1, 1001).double() / 1000 if times is None else torch.as_tensor(times, dtype=torch.float64)
    alpha, sigma = schedule.alpha(times).numpy(), schedule.sigma(times).numpy()
    gamma = sigma**2 / (alpha**2 * c2 + sigma**2)
    return GammaTable.exact(schedule, times.numpy(), gamma, 1.0 - gamma)


def chain_variances(sampler, denoiser, c2=0.25):
    """Exact variance after every step of a linear chain, read off its transitions."""
    run = sampler.start(denoiser)
    levels = run.plan.levels
    variance = [levels.alpha[0] ** 2 * c2 + levels.sigma[0] ** 2]
    for level in range(run.plan.steps):
        mean, std = sampler.transition(run, torch.ones(1, 1, dtype=torch.float64), level)
        variance.append(mean.item() ** 2 * variance[-1] + float(std) ** 2)
    return variance


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["analytic", "analytic-residual"])
@pytest.mark.parametrize("steps", [5, 10])
def test_a_table_makes_the_chain_exact_on_gaussians_for_every_eta(eta, kind, steps):
    d = AnalyticCovariance(IsotropicGaussian(), gaussian_table(), kind)
    v = chain_variances(Ancestral(steps, eta=eta, variance=kind), d)
    assert v[-2] == pytest.approx(0.250075, abs=1e-9)
    assert v[-1] == pytest.approx(0.24990003, abs=1e-8)


@pytest.mark.parametrize("nodes", [(1, 2, 3, 1000), (1, 500, 999, 1000), (1, 30, 77, 300, 640, 1000)])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_a_table_makes_every_subsequence_exact_on_gaussians(nodes, eta):
    from trueward.times import Times

    d = AnalyticCovariance(IsotropicGaussian(), gaussian_table())
    sampler = Ancestral(len(nodes), eta=eta, variance="posterior", grid=Times([n / 1000 for n in nodes[::-1]]))
    v = chain_variances(sampler, d)
    for got, n in zip(v, nodes[::-1]):
        alpha, sigma = LINEAR.at(n / 1000)
        assert got == pytest.approx(0.25 * alpha**2 + sigma**2, rel=1e-9)


@pytest.mark.parametrize("schedule", [EDM(), VPLinear()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_table_is_exact_in_continuous_time_for_any_alpha_and_sigma(schedule, eta):
    grid = Ancestral(6, grid="log-snr").levels(schedule).t[:-1]
    d = AnalyticCovariance(IsotropicGaussian(schedule), gaussian_table(schedule, times=np.sort(grid)))
    sampler = Ancestral(6, eta=eta, variance="analytic", grid="log-snr")
    levels = sampler.levels(schedule)
    for got, alpha, sigma in zip(chain_variances(sampler, d), levels.alpha[:-1], levels.sigma[:-1]):
        assert got == pytest.approx(alpha**2 * 0.25 + sigma**2, rel=1e-9)


def test_gamma_confused_with_the_squared_score_would_be_noticed():
    table = gaussian_table()
    sigma2 = LINEAR.sigma(torch.as_tensor(table.times)).numpy() ** 2
    wrong = GammaTable.exact(LINEAR, table.times, table.gamma / sigma2, table.residual)
    v = chain_variances(Ancestral(5, variance="posterior"), AnalyticCovariance(IsotropicGaussian(), wrong))
    assert abs(v[-2] - 0.250075) > 1e-3


def test_a_row_may_stand_at_any_level():
    d = AnalyticCovariance(
        TwoPoints(), GammaTable.exact(LINEAR, np.arange(1, 1001) / 1000, np.full(1000, 0.7), np.full(1000, 0.3))
    )
    sampler = Ancestral(6, variance="analytic", clip_levels=17)
    x = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    run = sampler.start(d)
    together = sampler.transition(run, x, torch.arange(6))
    for level in range(6):
        mean, std = sampler.transition(run, x[level : level + 1], level)
        assert torch.allclose(mean, together.mean[level : level + 1], atol=1e-12)
        assert float(together.std[level]) == pytest.approx(float(std), rel=1e-12)


def test_the_clip_touches_the_last_noisy_steps_alone():
    table = GammaTable.exact(LINEAR, np.arange(1, 1001) / 1000, np.full(1000, 0.3), np.full(1000, 0.7))
    d = AnalyticCovariance(TwoPoints(), table)
    x = torch.full((1, 1), 0.3, dtype=torch.float64)

    def stds(**options):
        sampler = Ancestral(5, variance="analytic", **options)
        return [float(sampler.transition(sampler.start(d), x, level).std) for level in range(5)]

    free, one, two = stds(clip_sigma_steps=0), stds(clip_pixel=2.0), stds(clip_sigma_steps=2)
    assert [a != b for a, b in zip(free, one)] == [False, False, False, True, False]
    assert [a != b for a, b in zip(free, two)] == [False, False, True, True, False]
    assert one[3] ** 2 == pytest.approx(3.86509e-4, rel=1e-5)
    assert two[2] ** 2 == pytest.approx(9.66272e-5, rel=1e-5)
    unbounded = AnalyticCovariance(TwoPoints(data_range=None), table)
    sampler = Ancestral(5, variance="analytic")
    assert float(sampler.transition(sampler.start(unbounded), x, 3).std) == pytest.approx(free[3], rel=1e-9)


def test_the_last_step_gives_the_same_data_whatever_the_noise():
    d = AnalyticCovariance(
        TwoPoints(), GammaTable.exact(LINEAR, np.arange(1, 1001) / 1000, np.full(1000, 0.7), np.full(1000, 0.3))
    )
    from trueward.noise import Noise

    sampler = Ancestral(5, variance="analytic")
    x = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    a, b = (sampler.step(sampler.start(d, Noise.rows(seed, 4)), x, 4) for seed in (0, 1))
    assert torch.equal(a, b)
    a, b = (sampler.step(sampler.start(d, Noise.rows(seed, 4)), x, 3) for seed in (0, 1))
    assert not torch.equal(a, b)


def test_a_deterministic_sampler_with_a_covariance_is_stochastic_and_finite_where_gamma_exceeds_one():
    table = GammaTable.exact(LINEAR, np.arange(1, 1001) / 1000, np.full(1000, 1.5), np.full(1000, 0.5))
    d = AnalyticCovariance(TwoPoints(), table)
    sampler = DDIM(5, variance="analytic")
    assert sampler.stochastic
    x = sampler.sample(d, n=8).x
    plain = DDIM(5).sample(TwoPoints(), n=8).x
    assert torch.equal(x, plain)  # gamma > 1 leaves no variance at eta = 0


def test_a_table_refuses_what_does_not_belong_to_it():
    table = gaussian_table()
    with pytest.raises(ValueError, match="fit them again"):
        AnalyticCovariance(IsotropicGaussian(VPLinear()), table)
    with pytest.raises(ValueError, match=r"gamma is -0\.5"):
        GammaTable.exact(LINEAR, [0.1, 0.2], [0.5, -0.5], [0.5, 0.5])
    with pytest.raises(ValueError, match="gamma is nan"):
        GammaTable.exact(LINEAR, [0.1, 0.2], [0.5, np.nan], [0.5, 0.5])
    with pytest.raises(ValueError, match="increasing"):
        GammaTable.exact(LINEAR, [0.2, 0.1], [0.5, 0.5], [0.5, 0.5])
    with pytest.raises(ValueError, match="cover"):
        gaussian_table(VPLinear(), times=[0.1, 0.5, 1.0]).at(0.05)
    with pytest.raises(ValueError, match="some nodes"):
        gaussian_table(times=[0.1, 0.5, 1.0]).at(0.3)
    with pytest.raises(ValueError, match="not one for every node"):
        _ = gaussian_table(times=[0.1, 0.5, 1.0]).by_node
    with pytest.raises(ValueError, match="eta"):
        optimal_variance(LINEAR, 0.1, 0.2, 0.5, eta=1.5)
    with pytest.raises(ValueError, match="earlier"):
        optimal_variance(LINEAR, 0.2, 0.2, 0.5)
    with pytest.raises(ValueError, match="gamma"):
        optimal_variance(LINEAR, 0.1, 0.2, float("nan"))
    with pytest.raises(ValueError, match="Did you mean"):
        AnalyticCovariance(IsotropicGaussian(), table, "analytical")
    with pytest.raises(ValueError, match="knows no covariance"):
        Ancestral(5, variance="analytic").sample(IsotropicGaussian(), n=1)
    with pytest.raises(ValueError, match="knows the covariance 'analytic'"):
        Ancestral(5, variance="sn").sample(AnalyticCovariance(IsotropicGaussian(), table), n=1)
    assert np.isnan(table.by_node[0])
    assert len(table.by_node) == 1001
