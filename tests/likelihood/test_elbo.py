"""The discrete bound: equal to the entropy where it must be, term by term, for every variance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from covariance.exact import LINEAR, IsotropicGaussian, TwoPoints
from trueward.covariance import AnalyticCovariance, GammaTable
from trueward.covariance.trajectories import even_nodes
from trueward.denoisers import Denoiser, Posterior
from trueward.full_covariance import FullCovariance
from trueward.likelihood import (
    DiscretizedGaussian,
    GaussianDensity,
    decoder_variance,
    divergence,
    elbo,
    gaussian_kl,
    prior_divergence,
)
from trueward.samplers import DDIM, Ancestral
from trueward.samplers.reverse_step import ReverseSteps
from trueward.schedules import EDM, VPLinear
from trueward.truth import Gaussian


def expected_bound(covariance, steps, structure):
    """The bound of exact means on N(0, covariance), averaged in closed form, nats per dimension.

    The last term is a Gaussian decoder with the optimal covariance of the same structure. With exact means the residual is
    the posterior covariance, and it is the same for all states.
    """
    covariance = np.asarray(covariance, dtype=np.float64)
    d = len(covariance)
    nodes = even_nodes(1000, steps)

    def posterior(n):
        alpha, sigma = LINEAR.at(n / 1000)
        full = covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(d)) * sigma**2
        if structure == "full":
            return full, full
        if structure == "diagonal":
            return full, np.diag(np.diag(full))
        return full, np.eye(d) * np.trace(full) / d

    alpha, sigma = LINEAR.at(1.0)
    total = 0.5 * (np.trace(covariance) * alpha**2 + d * (sigma**2 - 1 - math.log(sigma**2)))
    for s, t in itertools.pairwise(nodes):
        step = ReverseSteps.between(LINEAR, s / 1000, t / 1000)
        residual, model = posterior(t)
        variance = step.lambda2 * np.eye(d) + step.kappa**2 * model
        inverse = np.linalg.inv(variance)
        total += 0.5 * (
            step.lambda2 * np.trace(inverse) - d + np.linalg.slogdet(variance)[1] - d * np.log(step.lambda2)
            + step.kappa**2 * np.trace(inverse @ residual)
        )  # fmt: skip
    residual, model = posterior(1)
    total += 0.5 * (d * math.log(2 * math.pi) + np.linalg.slogdet(model)[1] + np.trace(np.linalg.inv(model) @ residual))
    return float(total / d)


@pytest.mark.parametrize("steps", [5, 10, 50, 1000])
def test_the_bound_of_exact_gaussians_is_their_entropy_for_every_number_of_steps(steps):
    assert expected_bound([[0.25]], steps, "isotropic") == pytest.approx(0.72579135, abs=1e-7)
    assert expected_bound([[0.25]], steps, "isotropic") / math.log(2) == pytest.approx(1.04709559, abs=1e-7)


ANISOTROPIC, CORRELATED = np.diag([0.04, 1.0]), 0.25 * np.array([[1, 0.8], [0.8, 1]])
KNOWN_BOUNDS = [
    (ANISOTROPIC, "diagonal", (0.61421958,) * 4),
    (ANISOTROPIC, "isotropic", (0.96049987, 0.80218894, 0.65239586, 0.61610339)),
    (CORRELATED, "diagonal", (0.66538006, 0.57344279, 0.49115271, 0.47140338)),
    (CORRELATED, "isotropic", (0.66538006, 0.57344279, 0.49115271, 0.47140338)),
    (CORRELATED, "full", (0.47037854,) * 4),
]


@pytest.mark.parametrize(("covariance", "structure", "known"), KNOWN_BOUNDS)
def test_only_the_right_structure_of_covariance_reaches_the_entropy(covariance, structure, known):
    got = [expected_bound(covariance, steps, structure) for steps in (5, 10, 50, 1000)]
    assert got == pytest.approx(known, abs=1e-6)


class GaussianModel(Denoiser):
    """Exact for N(0, covariance), with a posterior covariance of the given structure."""

    covariance_kind = "posterior of the truth"

    def __init__(self, covariance, structure):
        super().__init__(LINEAR, shape=(2,))
        self.covariance, self.structure = torch.as_tensor(covariance), structure

    @property
    def dtype(self):
        return torch.float64

    def forward(self, x_t, t, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        inverse = torch.linalg.inv(alpha**2 * self.covariance + sigma**2 * torch.eye(2).double())
        full = self.covariance @ inverse * sigma**2
        var = {
            "full": FullCovariance.of(full),
            "diagonal": full.diagonal().expand_as(x_t),
            "isotropic": (full.trace() / 2).item(),
        }[self.structure]
        return Posterior(x_t, alpha, sigma, mean=alpha * x_t @ (self.covariance @ inverse), var=var)


@pytest.mark.parametrize(("covariance", "structure", "known"), KNOWN_BOUNDS)
def test_the_bound_measured_on_samples_is_the_closed_form(covariance, structure, known):
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(torch.as_tensor(covariance))
    x_0 = torch.randn(20_000, 2, dtype=torch.float64, generator=generator) @ root.T
    model = GaussianModel(covariance, structure)
    for steps, value in ((5, known[0]), (10, known[1])):
        bound = elbo(model, x_0, Ancestral(steps, variance="posterior"), decoder=GaussianDensity(), batch_size=20_000)
        assert abs(bound.total - 2 * value) < 4 * bound.total_error  # false alarm 6e-5
        assert bound.total_error < 0.05
        assert bound.bits_per_dim == pytest.approx(bound.total / (2 * math.log(2)))
        assert bound.terms.sum() == pytest.approx(bound.total)
        assert len(bound.terms) == steps + 1
        assert bound.decoder + bound.edges + bound.prior == pytest.approx(bound.total)


def gaussian_bound(steps, variance):
    """Closed form for N(0, 0.25) with a handcrafted variance; the decoder has beta_1, as the known numbers do."""
    nodes = even_nodes(1000, steps)

    def residual(n):
        alpha, sigma = LINEAR.at(n / 1000)
        return 0.25 * sigma**2 / (0.25 * alpha**2 + sigma**2)

    alpha, sigma = LINEAR.at(1.0)
    total = gaussian_kl(sigma**2, 1.0, 0.25 * alpha**2)
    for s, t in itertools.pairwise(nodes):
        step = ReverseSteps.between(LINEAR, s / 1000, t / 1000)
        spread = step.beta if variance == "beta" else step.beta_tilde
        total += gaussian_kl(float(step.lambda2), float(spread), float(step.kappa**2) * residual(t))
    beta_1 = LINEAR.betas[0]
    return total + 0.5 * (math.log(2 * math.pi * beta_1) + residual(1) / beta_1)


def test_handcrafted_variances_give_the_bounds_they_are_known_to_give():
    for variance, known in (
        ("beta", (0.91812172, 0.82802068, 0.74751136, 0.72688361)),
        ("beta-tilde", (979.151, 455.340, 29.7065, 1.18214)),
    ):
        got = [gaussian_bound(steps, variance) for steps in (5, 10, 50, 1000)]
        assert got == pytest.approx(known, rel=1e-6 if variance == "beta" else 1e-5)


@pytest.mark.parametrize("variance", ["beta", "beta-tilde"])
def test_handcrafted_variances_are_measured_as_in_closed_form(variance):
    x_0 = 0.5 * torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    decoder = GaussianDensity(variance=LINEAR.betas[0])
    bound = elbo(IsotropicGaussian(), x_0, Ancestral(10, variance=variance), decoder=decoder, batch_size=20_000)
    assert abs(bound.total - gaussian_bound(10, variance)) < 4 * bound.total_error


def test_a_wrong_sign_or_order_of_the_divergence_would_be_noticed():
    q, p = torch.distributions.Normal(0.3, 0.5), torch.distributions.Normal(-0.1, 1.5)
    right = torch.distributions.kl_divergence(q, p).item()
    assert gaussian_kl(0.25, 2.25, 0.16) == pytest.approx(right)
    assert abs(gaussian_kl(2.25, 0.25, 0.16) - right) > 1
    difference = torch.full((1, 1), 0.4).double()
    assert divergence(0.25, 1.5, difference).item() == pytest.approx(right)
    assert prior_divergence(torch.tensor([[0.8]]), 0.5, 0.5, 1.5).item() == pytest.approx(right)
    full = FullCovariance.of(torch.diag(torch.tensor([2.25, 2.25])).double()).sqrt()
    assert divergence(0.25, full, torch.full((1, 2), 0.4)).item() == pytest.approx(2 * right, rel=1e-6)


def test_between_ddpm_and_ddim_every_edge_costs_half_the_log_ratio_of_its_variances():
    x_0 = 0.5 * torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = IsotropicGaussian(knows=True)
    totals = []
    for eta in (0.5, 1.0):
        bound = elbo(model, x_0, Ancestral(6, eta=eta, variance="posterior"), decoder=GaussianDensity())
        nodes = even_nodes(1000, 6)
        for k, (s, t) in enumerate(itertools.pairwise(nodes), start=1):
            step = ReverseSteps.between(LINEAR, s / 1000, t / 1000, eta)
            alpha, sigma = LINEAR.at(t / 1000)
            variance = step.lambda2 + step.kappa**2 * 0.25 * sigma**2 / (0.25 * alpha**2 + sigma**2)
            assert abs(bound.terms[k] - 0.5 * math.log(variance / step.lambda2)) < 4.5 * bound.term_errors[k]
        totals.append(bound.total)
    assert totals[0] > totals[1] + 0.1  # the process of eta < 1 is no Markov chain, so its bound is not tight


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(sigma_min=0.02)], ids=lambda s: type(s).__name__)
def test_continuous_schedules_have_a_bound_too(schedule):
    x_0 = 0.5 * torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = IsotropicGaussian(schedule, knows=True)
    sampler = Ancestral(8, variance="posterior", grid="log-snr")
    bound = elbo(model, x_0, sampler, decoder=GaussianDensity())
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25)
    alpha, sigma = schedule.at(schedule.t_max)
    gap = gaussian_kl(alpha**2 * 0.25 + sigma**2, float(schedule.prior_std()) ** 2, 0.0)
    assert abs(bound.total - entropy - gap) < 4 * bound.total_error


def grey(n=500, levels=17):
    return torch.randint(0, levels, (n, 4), generator=torch.Generator().manual_seed(0)).double() / (levels - 1) * 2 - 1


@pytest.mark.parametrize("cdf", ["erf", "tanh"])
def test_the_probabilities_of_all_levels_sum_to_one(cdf):
    decoder = DiscretizedGaussian(17, (-1.0, 1.0), cdf)
    values = torch.linspace(-1, 1, 17).double().view(-1, 1)
    for mean, variance in ((0.1, 0.04), (-0.98, 0.01), (1.3, 1.0), (0.0, 1e-4)):
        p = torch.exp(-decoder.nll(values, torch.full_like(values, mean), variance))
        assert p.sum().item() == pytest.approx(1.0, abs=1e-9)
    # far in a tail the exact distribution keeps its digits, the floor holds
    far = decoder.nll(torch.tensor([[-1.0]]).double(), torch.tensor([[5.0]]).double(), 1e-4).item()
    assert far == pytest.approx(-math.log(1e-12))
    near = (
        DiscretizedGaussian(17)
        .nll(torch.tensor([[-1.0]]).double(), torch.tensor([[-0.4]], dtype=torch.float64), 0.01)
        .item()
    )
    assert near == pytest.approx(
        -torch.special.log_ndtr(torch.tensor((-1 + 1 / 16 + 0.4) / 0.1, dtype=torch.float64)).item(), rel=1e-9
    )


def test_the_published_approximation_of_the_distribution_is_close_but_not_the_same():
    values, mean = torch.tensor([[0.0]]).double(), torch.tensor([[0.3]]).double()
    a, b = (DiscretizedGaussian(17, cdf=cdf).nll(values, mean, 0.02).item() for cdf in ("erf", "tanh"))
    z = [(v - 0.3) / math.sqrt(0.02) for v in (1 / 16, -1 / 16)]
    f = [0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in z]
    assert b == pytest.approx(-math.log(f[0] - f[1]))
    assert a != b
    assert a == pytest.approx(b, abs=0.02)


def test_the_decoder_has_the_small_variance_between_the_two_cleanest_nodes():
    b, s = LINEAR.betas, [LINEAR.at(n / 1000)[1] ** 2 for n in (1, 2)]
    assert decoder_variance(LINEAR, 1 / 1000) == pytest.approx(b[1] * s[0] / s[1], rel=1e-9)
    sigma_min = EDM().sigma_min
    assert decoder_variance(EDM(), sigma_min) == pytest.approx(sigma_min**2 / 2)


def test_the_decoder_term_is_that_of_the_clamped_mean():
    model, data = TwoPoints(), torch.tensor([[1.0], [-1.0]]).double()
    bound = elbo(model, data, Ancestral(4, variance="beta"), decoder=DiscretizedGaussian(256))
    # at sigma = 0.01 the sign is certain, so the mean is the datum; its bin is open on the far side
    std = math.sqrt(decoder_variance(LINEAR, 1 / 1000))
    expected = -torch.special.log_ndtr(torch.tensor(1 / 255 / std, dtype=torch.float64)).item()
    assert bound.decoder == pytest.approx(expected, rel=1e-6)


def test_batches_do_not_change_the_bound_and_examples_keep_their_noise():
    model = TwoPoints()
    data = torch.randint(0, 2, (37, 1), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    sampler, decoder = Ancestral(5, variance="beta"), DiscretizedGaussian()
    a, b = (elbo(model, data, sampler, decoder=decoder, batch_size=size) for size in (37, 8))
    assert np.allclose(a.totals, b.totals, rtol=1e-12)
    assert np.allclose(a.terms, b.terms, rtol=1e-12)
    c = elbo(model, [data[:20], data[20:]], sampler, decoder=decoder)  # a loader
    assert np.allclose(a.totals, c.totals, rtol=1e-12)
    d = elbo(model, data, sampler, decoder=decoder, seed=1)
    assert not np.allclose(a.totals, d.totals)


def test_the_standard_error_is_the_scatter_over_examples():
    data = grey()
    model = IsotropicGaussian(shape=(4,), data_range=(-1.0, 1.0))
    bound = elbo(model, data, Ancestral(5, variance="beta"), decoder=DiscretizedGaussian(17))
    expected = bound.totals.std(ddof=1) / math.sqrt(500) / (4 * math.log(2))
    assert bound.standard_error == pytest.approx(expected)
    record = bound.to_record()
    assert record["without_decoder"] + record["decoder"] == pytest.approx(record["bits_per_dim"])
    assert record["examples"] == 500


def test_the_likelihood_knows_no_pixel_clip():
    table = GammaTable.exact(LINEAR, np.arange(1, 1001) / 1000, np.full(1000, 0.3), np.full(1000, 0.7))
    model = AnalyticCovariance(TwoPoints(), table)
    data = torch.ones(64, 1).double()
    a, b = (
        elbo(model, data, Ancestral(5, variance="analytic", clip_pixel=y), decoder=DiscretizedGaussian())
        for y in (1e-6, 100.0)
    )
    assert np.array_equal(a.totals, b.totals)


def test_an_analytic_variance_beats_both_handcrafted_ones():
    times = np.arange(1, 1001) / 1000
    truth = Gaussian(torch.zeros(4), torch.tensor([0.02, 0.1, 0.3, 0.6]))
    model = truth.denoiser(LINEAR)
    alpha2, sigma2 = (f(torch.as_tensor(times)).numpy()[:, None] ** 2 for f in (LINEAR.alpha, LINEAR.sigma))
    gamma = (sigma2 / (alpha2 * np.array([0.02, 0.1, 0.3, 0.6]) + sigma2)).mean(1)
    analytic = AnalyticCovariance(model, GammaTable.exact(LINEAR, times, gamma, 1 - gamma))
    diagonal = truth.denoiser(LINEAR, covariance="diagonal")
    data = truth.sample(2000, torch.Generator().manual_seed(0))
    decoder = GaussianDensity(variance=None)

    def bits(model, variance):
        return elbo(model, data, Ancestral(8, variance=variance), decoder=decoder, batch_size=2000).bits_per_dim

    found = [bits(diagonal, "posterior"), bits(analytic, "analytic"), bits(model, "beta"), bits(model, "beta-tilde")]
    assert found == sorted(found)
    assert found[1] - found[0] > 0.05  # the data are anisotropic
    assert found[2] - found[1] > 0.02


def test_bad_calls_are_told_in_one_sentence():
    model, data = TwoPoints(), torch.ones(4, 1).double()
    with_range = DiscretizedGaussian()
    for call, words in (
        (lambda: elbo(model, data, DDIM(5), decoder=with_range), "infinite at eta=0"),
        (lambda: elbo(model, data), "grey levels"),
        (lambda: elbo(model, 1.1 * data, decoder=with_range), "outside the model's data_range"),
        (lambda: elbo(model, data * float("nan"), decoder=with_range), "NaN"),
        (lambda: elbo(model, data, Ancestral(5, variance="analytic"), decoder=with_range), "knows no covariance"),
        (lambda: elbo(model, [], decoder=with_range), "no example"),
        (lambda: elbo(model, data, decoder=GaussianDensity("posterior")), "knows none"),
        (lambda: elbo(model, data, decoder=with_range, conditional=True), "class labels"),
        (lambda: DiscretizedGaussian(1), "levels"),
        (lambda: DiscretizedGaussian(cdf="erff"), "Did you mean 'erf'"),
        (lambda: GaussianDensity(variance=-1.0), "variance must be positive"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_sn_is_warned_about():
    class Head(torch.nn.Module):
        def forward(self, features, log_snr):
            return torch.ones_like(features[:, :1])

    from trueward.covariance import SNCovariance

    d = SNCovariance(TwoPoints(), Head(), feature_layer="inputs")
    with pytest.warns(UserWarning, match="use npr"):
        elbo(d, torch.ones(4, 1).double(), Ancestral(4, variance="sn"), decoder=DiscretizedGaussian())
