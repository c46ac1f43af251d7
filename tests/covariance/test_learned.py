"""SN and NPR heads: their formulas, clipping, training through the one trainer, and that the model is left alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from covariance.exact import LINEAR, IsotropicGaussian, TwoPoints, node, two_point_law, two_points
from trueward.covariance import (
    AnalyticCovariance,
    CovarianceHead,
    GammaTable,
    NPRCovariance,
    SNCovariance,
    trainable,
)
from trueward.denoisers import ClassifierFreeGuidance, Denoiser, Posterior, denoiser
from trueward.objectives.moments import MomentMatching
from trueward.samplers import DDIM, Ancestral
from trueward.samplers.reverse_step import ReverseSteps
from trueward.schedules import EDM, VPLinear


class ExactHead(nn.Module):
    """The exact moment of two-point data, for a mean scaled by `c`; its features are (x, c E[eps | x])."""

    def __init__(self, kind, c=1.0, n=None, error=0.0):
        super().__init__()
        self.kind, self.c, self.error = kind, c, error

    def forward(self, features, log_snr):
        sigma2 = torch.sigmoid(-log_snr)[:, None]
        alpha = (1 - sigma2).sqrt()
        x = features[:, :1]
        m = torch.tanh(alpha * x / sigma2)
        e = (x - alpha * m) / sigma2.sqrt()
        second = e**2 + alpha**2 / sigma2 * (1 - m**2)
        h = second if self.kind is SNCovariance else second - 2 * self.c * e**2 + self.c**2 * e**2
        return h + self.error


def exact(kind, c=1.0, **options):
    return kind(TwoPoints(c=c), ExactHead(kind, c), feature_layer="inputs", **options)


def ask(d, n, x):
    return d(torch.as_tensor(x, dtype=torch.float64).reshape(-1, 1), node(n))


def test_the_moments_of_two_point_data():
    known = {
        (200, 0.3): (0.61335660, 0.62379368, -0.33896848, 1.32061954),
        (300, 0.0): (0.0, 1.0, 0.0, 0.65678055),
        (300, 1.0): (0.77912503, 0.39296419, 0.65574139, 0.68808800),
    }
    for (n, x), (mean, variance, eps, second) in known.items():
        for kind in (SNCovariance, NPRCovariance):
            d = exact(kind)
            posterior, h = d.predict(torch.tensor([[x]], dtype=torch.float64), node(n))
            assert posterior.mean.item() == pytest.approx(mean, abs=1e-7)
            assert posterior.eps.item() == pytest.approx(eps, abs=1e-7)
            if kind is SNCovariance:
                assert h.item() == pytest.approx(second, abs=1e-7)
            assert ask(d, n, x).var.item() == pytest.approx(variance, abs=1e-7)


@pytest.mark.parametrize("c", [0.9, 1.1])
def test_what_an_imperfect_mean_does_to_either_form(c):
    x = np.linspace(-3, 3, 41)
    for n in (112, 300):
        alpha, sigma = LINEAR.at(node(n))
        _, v, e, _ = two_points(n, x)
        ratio = (sigma / alpha) ** 2
        npr = exact(NPRCovariance, c, data_range=None)
        assert np.allclose(ask(npr, n, x).var.numpy().ravel(), v + ratio * (1 - c) ** 2 * e**2, atol=1e-12)
        raw = exact(SNCovariance, c).raw(torch.as_tensor(x).reshape(-1, 1), node(n))[1].numpy().ravel()
        assert np.allclose(raw, v + ratio * (1 - c**2) * e**2, atol=1e-12)
        clipped = ask(exact(SNCovariance, c), n, x).var.numpy().ravel()
        assert clipped.min() >= 0
        if c > 1:
            assert raw.min() < 0


EDGES = [(1, 112), (112, 223), (223, 334), (100, 300)]


def edge_kl(s, t, covariance, c=1.0, pieces=200_001):
    """Expected divergence of the step t -> s for a covariance given as a function of x, on a dense grid."""
    x, w = two_point_law(t, pieces)
    alpha, sigma = LINEAR.at(node(t))
    _, v, e, _ = two_points(t, x)
    residual = v + (sigma / alpha) ** 2 * (1 - c) ** 2 * e**2
    step = ReverseSteps.between(LINEAR, node(s), node(t))
    variance = step.lambda2 + step.kappa**2 * covariance(x)
    value = step.lambda2 / variance - 1 + np.log(variance / step.lambda2) + step.kappa**2 * residual / variance
    return float((w * value).sum() / 2)


KNOWN_EDGES = {
    ("analytic", 1.0): (2.44091, 0.507483, 0.257892, 0.865270),
    ("sn", 1.0): (0.472013, 0.403706, 0.249922, 0.796977),
    ("npr", 1.0): (0.472013, 0.403706, 0.249922, 0.796977),
    ("analytic", 0.9): (2.66227, 0.514207, 0.267493, 0.882737),
    ("analytic-residual", 0.9): (2.48843, 0.510932, 0.262322, 0.871975),
    ("sn", 0.9): (1.85269, 0.438466, 0.265236, 0.862712),
    ("npr", 0.9): (1.14953, 0.412177, 0.255684, 0.814890),
    ("sn", 1.1): (15.0627, 0.414734, 0.262836, 0.890814),
    ("npr", 1.1): (1.14953, 0.412177, 0.255684, 0.814890),
}


def measured_edge(kind, c, s, t):
    if kind in ("sn", "npr"):
        d = exact(SNCovariance if kind == "sn" else NPRCovariance, c)
    else:
        x, w = two_point_law(t)
        _, v, e, _ = two_points(t, x)
        alpha, sigma = LINEAR.at(node(t))
        gamma = float((w * (c * e) ** 2).sum())
        residual = float((w * ((alpha / sigma) ** 2 * v + (1 - c) ** 2 * e**2)).sum())
        table = GammaTable.exact(LINEAR, [node(t)], [gamma], [residual])
        d = AnalyticCovariance(TwoPoints(c=c), table, kind)
    return edge_kl(s, t, lambda x: np.asarray(torch.as_tensor(ask(d, t, x).var).expand(len(x), 1)).ravel(), c)


@pytest.mark.parametrize(("kind", "c"), list(KNOWN_EDGES))
def test_the_divergence_of_a_step_is_the_known_one(kind, c):
    got = [measured_edge(kind, c, s, t) for s, t in EDGES]
    assert got == pytest.approx(list(KNOWN_EDGES[kind, c]), rel=1e-3)


@pytest.mark.parametrize("c", [0.9, 1.0, 1.1])
def test_npr_is_the_best_choice_whatever_the_mean(c):
    for s, t in EDGES:
        npr = measured_edge("npr", c, s, t)
        others = [measured_edge(kind, c, s, t) for kind in ("analytic", "analytic-residual", "sn")]
        assert npr <= min(others) + 1e-9
        if c != 1.0:
            assert others[2] > npr + 1e-3
        # and its own divergence is that of a perfect fit: half the mean log-ratio of the variances
        x, w = two_point_law(t)
        step = ReverseSteps.between(LINEAR, node(s), node(t))
        variance = (
            step.lambda2 + step.kappa**2 * ask(exact(NPRCovariance, c, data_range=None), t, x).var.numpy().ravel()
        )
        ideal = float((w * np.log(variance / step.lambda2)).sum() / 2)
        if measured_edge("npr", c, s, t) == pytest.approx(ideal, rel=1e-6):
            break
    else:
        pytest.fail("no edge is at its ideal")


def test_both_forms_of_a_step_at_known_states():
    x = np.linspace(-2, 2, 8)
    column = torch.as_tensor(x).reshape(-1, 1)
    from trueward.times import Times

    grid = Times([node(223), node(112)])

    def step(d, eta):
        sampler = Ancestral(2, eta=eta, variance="posterior", grid=grid, clip=False, clip_sigma_steps=0)
        mean, std = sampler.transition(sampler.start(d), column, 0)
        return mean.numpy().ravel(), (std**2).numpy().ravel()

    mean, variance = step(exact(SNCovariance), 1.0)
    assert variance[:4] == pytest.approx([0.10033806, 0.10829835, 0.17441896, 0.50469703], abs=1e-7)
    assert variance[::-1] == pytest.approx(variance, rel=1e-9)
    assert mean[:4] == pytest.approx([-1.25202415, -1.09851894, -0.90355824, -0.44025273], abs=1e-7)
    mean, variance = step(exact(NPRCovariance), 0.0)
    assert variance[:4] == pytest.approx([0.00047289, 0.00419316, 0.03509483, 0.18945133], abs=1e-7)
    assert mean[:4] == pytest.approx([-1.62145387, -1.29778997, -0.94578577, -0.41033238], abs=1e-7)
    _, variance = step(exact(NPRCovariance, 0.9), 1.0)
    assert variance[:4] == pytest.approx([0.11397383, 0.11226573, 0.17459712, 0.50478647], abs=1e-7)
    _, variance = step(exact(SNCovariance, 0.9), 1.0)
    assert variance[:4] == pytest.approx([0.35941755, 0.18367863, 0.17780398, 0.50639645], abs=1e-7)


class Constant(nn.Module):
    """Answers the number of the table, so that the learned covariance is Analytic-DPM's."""

    def __init__(self, kind, table):
        super().__init__()
        self.kind, self.table = kind, table

    def forward(self, features, log_snr):
        t = LINEAR.time_of_log_snr(log_snr.double()).numpy()
        left = torch.as_tensor(1 - self.table.at(np.round(t * 1000) / 1000)).to(features.dtype)[:, None]
        eps = features[:, 1:]
        return left + eps**2 if self.kind is SNCovariance else left.expand_as(eps)


@pytest.mark.parametrize("kind", [SNCovariance, NPRCovariance])
@pytest.mark.parametrize("sampler", [Ancestral, DDIM])
def test_a_head_that_answers_the_table_is_analytic_dpm_seed_for_seed(kind, sampler):
    gamma = np.linspace(0.4, 0.999, 1000)
    table = GammaTable.exact(LINEAR, np.arange(1, 1001) / 1000, gamma, 1 - gamma)
    learned = kind(TwoPoints(), Constant(kind, table), feature_layer="inputs")
    s = sampler(8, variance="posterior")
    a = s.sample(learned, n=32, seed=3).x
    b = s.sample(AnalyticCovariance(TwoPoints(), table), n=32, seed=3).x
    assert (a - b).abs().max().item() < 1e-9


class Map(nn.Module):
    """A head that answers a fixed map."""

    def __init__(self, *values):
        super().__init__()
        self.values = torch.tensor(values, dtype=torch.float64)

    def forward(self, features, log_snr):
        return self.values.expand(len(features), -1)


def test_averaging_comes_before_clamping():
    inner = IsotropicGaussian(EDM(), shape=(2,), data_range=(-1.0, 1.0))
    d = NPRCovariance(inner, Map(-0.5, 0.9), feature_layer="inputs", average=True)
    x = torch.zeros(1, 2, dtype=torch.float64)
    assert d(x, 1.0).var.item() == pytest.approx(0.2)  # not 0.45
    apart = NPRCovariance(inner, Map(-0.5, 0.9), feature_layer="inputs")
    assert apart(x, 1.0).var.tolist() == [[0.0, 0.9]]
    assert apart(x, 4.0).var.tolist() == [[0.0, 1.0]]  # 0.9 * 16 is more than the range allows
    unbounded = NPRCovariance(inner, Map(-0.5, 0.9), feature_layer="inputs", data_range=None)
    assert unbounded(x, 4.0).var[0, 1].item() == pytest.approx(14.4)


def test_the_pixel_clip_is_elementwise_and_at_the_last_noisy_step_alone():
    inner = IsotropicGaussian(shape=(2,), data_range=(-1.0, 1.0))
    d = NPRCovariance(inner, Map(0.9, 1e-4), feature_layer="inputs")
    x = torch.zeros(1, 2, dtype=torch.float64)
    free, clipped = Ancestral(5, eta=0.0, variance="npr", clip_sigma_steps=0), Ancestral(5, eta=0.0, variance="npr")
    for level in range(4):
        a, b = (s.transition(s.start(d), x, level).std for s in (free, clipped))
        assert (a != b).tolist() == [[level == 3, False]]


def test_the_floor_is_a_share_of_the_expected_residual():
    table = GammaTable.exact(LINEAR, np.arange(1, 1001) / 1000, np.full(1000, 0.5), np.full(1000, 0.4))
    inner = IsotropicGaussian(shape=(2,), data_range=(-1.0, 1.0))
    d = NPRCovariance(inner, Map(-0.5, 0.3), feature_layer="inputs", floor=0.05, table=table)
    x = torch.zeros(2, 2, dtype=torch.float64)
    for n in (50, 300):
        alpha, sigma = LINEAR.at(node(n))
        ratio = (sigma / alpha) ** 2
        expected = [0.05 * 0.4 * ratio, min(1.0, 0.3 * ratio)]
        assert d(x, node(n)).var[0].tolist() == pytest.approx(expected)
        assert d(x, torch.tensor([node(n)] * 2)).var[1].tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="needs the table"):
        NPRCovariance(inner, Map(1.0, 1.0), floor=0.05)


def test_targets_of_both_forms_are_regressed_to_their_conditional_means():
    torch.manual_seed(0)
    n, alpha, sigma = 300, *LINEAR.at(node(300))
    x_0 = 0.5 * torch.randn(2_000_000, 1, dtype=torch.float64)
    eps = torch.randn_like(x_0)
    x = alpha * x_0 + sigma * eps
    design = torch.cat([torch.ones_like(x), x**2], 1)

    def fit(target):
        return torch.linalg.lstsq(design, target).solution.ravel().tolist()

    inner = IsotropicGaussian()
    posterior = inner(x, node(n))
    sn = SNCovariance(inner, Map(0.0), feature_layer="inputs")
    assert fit(sn.target(eps, posterior)) == pytest.approx([0.14104, 1.22240], rel=0.01)
    for c in (0.9, 1.1):
        scaled = posterior.replace(eps=c * posterior.eps)
        constant, slope = fit(NPRCovariance(inner, Map(0.0), feature_layer="inputs").target(eps, scaled))
        assert constant == pytest.approx(0.14104, rel=0.01)
        assert slope == pytest.approx(0.012224, rel=0.05)


class SmallNet(nn.Module):
    """A user's own network on images, with dropout, and a named layer of features."""

    def __init__(self, classes=False):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Sequential(nn.SiLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, label, class_labels=None):
        return self.last(self.body(self.stem(x) + label.view(-1, 1, 1, 1).to(x) / 1000))


def user_model(**options):
    torch.manual_seed(0)
    return denoiser(SmallNet(), LINEAR, "eps", shape=(1, 6, 6), data_range=(-1.0, 1.0), **options)


class Pictures:
    """A data set as the trainer takes it."""

    data_range, num_classes, shape = (-1.0, 1.0), None, (1, 6, 6)

    def __init__(self, n=64):
        self.x = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return {"x": self.x[indices]}


def test_fitting_a_head_changes_not_a_bit_of_the_model(tmp_path):
    from trueward.training import Trainer, TrainingConfig

    model = user_model()
    before = copy.deepcopy(model.state_dict())
    x, t = torch.randn(5, 1, 6, 6), torch.full((5,), 0.3, dtype=torch.float64)
    answer = model.eval()(x, t).eps.clone()
    covariance = NPRCovariance(model, feature_layer="body")
    untrained = copy.deepcopy(covariance.head.state_dict())
    config = TrainingConfig(
        steps=8, batch_size=16, lr=1e-3, warmup=0, sample_every=0, progress=False, speed="plain", mixed_precision="no", held_out=8
    )  # fmt: skip
    head = trainable(covariance)
    Trainer(head, Pictures(), tmp_path / "npr", config, objective=MomentMatching(), device="cpu").fit()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x, t).eps, answer)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert any(not torch.equal(v, untrained[k]) for k, v in covariance.head.state_dict().items())
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "npr" / "model.safetensors")) == set(untrained)  # the run holds the head alone


def test_the_backbone_stays_in_evaluation_mode_while_its_head_is_fitted():
    model = user_model()
    covariance = SNCovariance(model, feature_layer="body").train()
    assert covariance.head.training
    assert not any(m.training for m in model.modules())
    parity = SNCovariance(model, feature_layer="body", backbone_eval=False).train()
    assert all(m.training for m in parity.inner.modules())


def test_features_come_with_the_same_answer_and_in_one_call():
    model = user_model().eval()
    calls = []
    model.network.register_forward_hook(lambda *a: calls.append(1))
    covariance = NPRCovariance(model, feature_layer="body").eval()
    calls.clear()
    x = torch.randn(3, 1, 6, 6)
    posterior, h = covariance.predict(x, 0.5)
    assert len(calls) == 1
    assert torch.equal(posterior.eps, user_model().eval()(x, 0.5).eps)
    expected = covariance.head(model.network.body(model.network.stem(x) + model.label(0.5).float() / 1000), None)
    assert torch.allclose(h, expected, atol=1e-5)


def test_a_trueward_network_and_a_diffusers_unet_are_found_by_themselves():
    from trueward.networks import UNet

    model = denoiser(UNet(1, 8, 8, (1, 2), 1, ()), LINEAR, "eps", shape=(1, 8, 8)).eval()
    x = torch.randn(2, 1, 8, 8)
    covariance = NPRCovariance(model)
    label = model.label(torch.tensor(0.5)).float().expand(2)
    features = model.network.forward_features(x, label)
    with torch.no_grad():
        assert torch.allclose(covariance.trunk(model, x, 0.5, {})[1], features, atol=1e-6)
    assert covariance.head.config["features"] == 8
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    model = denoiser(network, LINEAR, "eps", shape=(1, 8, 8)).eval()
    plain = model(x, 0.5).eps
    covariance = SNCovariance(model).eval()
    posterior, h = covariance.predict(x, 0.5)
    assert torch.equal(posterior.eps, plain)
    assert h.shape == x.shape
    assert covariance.trunk.path == "network.conv_norm_out"
    assert Ancestral(3, variance="sn").sample(covariance, n=2).x.isfinite().all()


def test_an_untrained_head_starts_at_what_is_known():
    model = user_model().eval()
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(SNCovariance(model, feature_layer="body").predict(x, 0.5)[1], torch.ones_like(x))
    assert torch.equal(NPRCovariance(model, feature_layer="body").predict(x, 0.5)[1], torch.zeros_like(x))


@pytest.mark.parametrize("spatial", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["simple", "complex"])
def test_heads_serve_vectors_sequences_images_and_volumes(spatial, mode):
    head = CovarianceHead(12, 2, spatial, mode)
    features = torch.randn(3, 12, *[4] * spatial)
    assert head(features, torch.zeros(3)).shape == (3, 2, *[4] * spatial)
    head(features, torch.zeros(3)).sum().backward()
    assert CovarianceHead(**{k: v for k, v in head.config.items() if k != "network"}).config == head.config


def test_the_loss_is_the_squared_error_summed_over_the_dimensions():
    inner = IsotropicGaussian(shape=(2,))
    batch = {"x": torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    losses = {}
    for kind in (SNCovariance, NPRCovariance):
        d = kind(inner, Map(0.25, 0.5), feature_layer="inputs")
        losses[kind] = MomentMatching()(d, batch, torch.Generator().manual_seed(1))
        from trueward.objectives import add_noise
        from trueward.objectives.times import DiscreteTimes

        noisy = add_noise(d, batch, torch.Generator().manual_seed(1), DiscreteTimes())
        eps = inner(noisy.x_t, noisy.t).eps
        target = noisy.eps**2 if kind is SNCovariance else (noisy.eps - eps) ** 2
        expected = (target - torch.tensor([0.25, 0.5], dtype=torch.float64)).square().sum(1)
        assert torch.allclose(losses[kind], expected)
    with pytest.raises(ValueError, match="has none"):
        MomentMatching()(inner, batch, torch.Generator())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SNCovariance, NPRCovariance])
def test_a_trained_head_finds_the_posterior_variance(kind):
    """Two-point data, an MLP on (x, eps): false alarms excluded by the fixed seed; measured well inside the bounds."""
    torch.manual_seed(0)
    inner = TwoPoints()
    d = kind(inner, CovarianceHead(2, 1, 0, "complex", kind.initial, blocks=2, width=48), feature_layer="inputs")
    objective, generator = MomentMatching(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(d.head.parameters(), lr=3e-3)
    for _ in range(1200):
        x_0 = torch.randint(0, 2, (512, 1), generator=generator, dtype=torch.float64) * 2 - 1
        loss = objective(d, {"x": x_0}, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    d.eval()
    x = np.linspace(-1.5, 1.5, 61)
    for n, bound in ((150, 0.06), (200, 0.06), (300, 0.15)):
        error = np.abs(ask(d, n, x).var.detach().numpy().ravel() - two_points(n, x)[1]).mean()
        assert error < bound, n


def test_continuous_and_noise_level_schedules_serve_too():
    for schedule in (VPLinear(), EDM()):
        d = NPRCovariance(IsotropicGaussian(schedule, shape=(2,)), Map(0.1, 0.2), feature_layer="inputs")
        x = Ancestral(5, grid="log-snr", variance="npr").sample(d, n=4).x
        assert x.isfinite().all()
        batch = {"x": torch.randn(8, 2, dtype=torch.float64)}
        assert MomentMatching()(d, batch, torch.Generator().manual_seed(0)).isfinite().all()


def test_bad_calls_are_told_in_one_sentence():
    model = user_model()

    class Wide(nn.Module):
        def forward(self, features, log_snr):
            return torch.zeros(len(features), 3)

    for call, words in (
        (lambda: NPRCovariance(model), "Say which layer of SmallNet"),
        (lambda: NPRCovariance(model, feature_layer="bdy"), "Did you mean 'body'"),
        (lambda: NPRCovariance(TwoPoints(), feature_layer="body"), "holds no network"),
        (lambda: NPRCovariance(model, feature_layer="body", floor=1.5), "floor"),
        (lambda: NPRCovariance(model, feature_layer="body", mode="smpl"), "Did you mean 'simple'"),
        (lambda: NPRCovariance(TwoPoints(), Wide(), feature_layer="inputs")(torch.zeros(2, 1).double(), 0.5), "answered shape"),
        (lambda: CovarianceHead(4, 1, spatial=7), "spatial must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            call()


def test_a_guided_model_cannot_share_its_trunk_but_can_be_asked_from_outside():
    class Labelled(Denoiser):
        def __init__(self):
            super().__init__(LINEAR, shape=(1, 6, 6), num_classes=3)
            self.network = SmallNet()

        def forward(self, x_t, t, class_labels=None, **condition):
            alpha, sigma = self.schedule.coefficients(t, x_t)
            return Posterior(x_t, alpha, sigma, eps=self.network(x_t, torch.zeros(len(x_t))))

    guided = ClassifierFreeGuidance(Labelled(), 2.0)
    with pytest.raises(ValueError, match="both halves"):
        NPRCovariance(guided, feature_layer="body")
    d = NPRCovariance(guided, feature_layer="inputs")
    x = torch.randn(2, 1, 6, 6)
    assert d(x, 0.5, class_labels=torch.tensor([0, 1])).var.shape == x.shape


def test_two_threads_may_share_a_model_with_features():
    from concurrent.futures import ThreadPoolExecutor

    model = user_model().eval()
    d = NPRCovariance(model, feature_layer="body").eval()
    torch.nn.init.normal_(d.head.out.weight, generator=torch.Generator().manual_seed(1))
    s = Ancestral(4, variance="npr")
    alone = [s.sample(d, n=4, seed=i).x for i in range(6)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda i: s.sample(d, n=4, seed=i).x, range(6)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together))


def test_a_network_that_holds_images_as_one_vector_gets_a_head_in_their_shape(tmp_path):
    from trueward.covariance import load_head, save_head
    from trueward.networks import MLP

    model = denoiser(MLP([2, 3, 4], width=16, depth=1), LINEAR, "eps", shape=(2, 3, 4)).eval()
    covariance = NPRCovariance(model, mode="complex")
    x = torch.randn(5, 2, 3, 4)
    assert covariance(x, 0.5).var.shape == x.shape
    torch.nn.init.normal_(covariance.head.out.weight)
    save_head(covariance, tmp_path)
    assert torch.equal(load_head(model, "npr", tmp_path)(x, 0.5).var, covariance.eval()(x, 0.5).var)
    with pytest.raises(ValueError, match="channels=24"):
        CovarianceHead(16, 12, 0, shape=(2, 3, 4))
