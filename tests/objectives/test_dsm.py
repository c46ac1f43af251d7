"""Denoising score matching against closed forms: for data N(0, tau^2 I) everything is known.

The exact posterior of x_0 has the variance c = tau^2 sigma^2 / v with v = alpha^2 tau^2 + sigma^2, so the exact denoiser's
expected loss at time t is w(t) c(t).
"""

from dataclasses import replace

import pytest
import torch

from trueward.denoisers import DataDenoiser, Denoiser, EDMDenoiser, Posterior
from trueward.objectives import (
    DSM,
    ImportanceTimes,
    LogNormalTimes,
    UniformTimes,
    add_noise,
    data_weight,
    squared_error,
)
from trueward.schedules import EDM, VE, DiscreteSchedule, VPCosine, VPLinear

TAU = 0.7
SCHEDULES = [VPLinear(), VPCosine(), VE(), EDM(), DiscreteSchedule.linear(100)]


class Exact(Denoiser):
    """The denoiser of N(0, TAU^2 I), answering in a view of choice; `gain` makes it wrong, `seen` is what it was asked."""

    def __init__(self, schedule, view="mean", gain=1.0, num_classes=None):
        super().__init__(schedule, num_classes=num_classes)
        self.view, self.gain, self.seen = view, gain, None

    def forward(self, x_t, t, **condition):
        self.seen = condition
        alpha, sigma = self.schedule.coefficients(t, x_t)
        v = alpha**2 * TAU**2 + sigma**2
        mean = self.gain * alpha * TAU**2 / v * x_t
        eps = (x_t - alpha * mean) / sigma
        views = {"mean": mean, "eps": eps, "v": alpha * eps - sigma * mean}
        return Posterior(x_t, alpha, sigma, **{self.view: views[self.view]})


def _data(n=4096, d=8, seed=0, dtype=torch.float32):
    return TAU * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _expected(weighting, times, schedule, d=8):
    """E_t[w c] by the midpoint rule over the quantiles."""
    t = times.quantile((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000, schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    c = TAU**2 * sigma**2 / (alpha**2 * TAU**2 + sigma**2)
    s, g = sigma / alpha, schedule.diffusion(t)
    w = {
        "x0": torch.ones_like(t),
        "eps": (alpha / sigma) ** 2,
        "v": ((alpha**2 + sigma**2) / sigma) ** 2,
        "edm": (s**2 + 0.25) / (0.5 * s) ** 2,
        "likelihood": d * g**2 / (2 * sigma**2 * s**2 * times.density(t, schedule)),
    }[weighting]
    return (w * c).mean().item()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("weighting", ["edm", "eps", "x0", "v", "likelihood"])
def test_the_exact_denoiser_has_the_loss_in_closed_form(weighting, schedule):
    objective = DSM(weighting)
    wanted = _expected(weighting, objective.times_of(schedule), schedule)
    losses = objective(Exact(schedule), {"x": _data()}, torch.Generator().manual_seed(1))
    assert losses.shape == (4096,)
    # rows have chi-squared losses of relative variance 2/d about a smooth function of evenly spread times: six standard
    # errors, a false alarm in fewer than one in a million runs (and the seed is fixed)
    assert abs(losses.mean().item() / wanted - 1) < 6 * losses.std().item() / wanted / 4096**0.5


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("weighting", ["edm", "eps", "x0", "v", "likelihood"])
def test_the_loss_does_not_depend_on_the_view_the_model_predicts_in(weighting, schedule):
    batch = {"x": _data(64, dtype=torch.float64)}
    losses = [
        DSM(weighting)(Exact(schedule, view), batch, torch.Generator().manual_seed(1)) for view in ("mean", "eps", "v")
    ]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weighting", ["edm", "eps", "x0", "v", "likelihood"])
@pytest.mark.parametrize("schedule", [VPLinear(), EDM()], ids=lambda s: type(s).__name__)
def test_the_exact_denoiser_is_the_minimiser(weighting, schedule):
    def loss(gain):
        objective = DSM(weighting, times=LogNormalTimes(mean=-0.5, std=0.8))
        return objective(Exact(schedule, gain=gain), {"x": _data(8192)}, torch.Generator().manual_seed(2)).mean()

    assert loss(1.0) < loss(0.95)
    assert loss(1.0) < loss(1.05)


@pytest.mark.parametrize(
    "schedule", [VPLinear(), VE(), EDM(sigma_min=0.05, sigma_max=10.0)], ids=lambda s: type(s).__name__
)
def test_the_likelihood_loss_estimates_one_integral_whatever_the_time_sampler(schedule):
    d = 8
    u = (torch.arange(200000, dtype=torch.float64) + 0.5) / 200000
    low, high = schedule.t_min, schedule.t_max
    t = low + (high - low) * u
    alpha, sigma, g = schedule.alpha(t), schedule.sigma(t), schedule.diffusion(t)
    error = d * (1 / sigma**2 - 1 / (alpha**2 * TAU**2 + sigma**2))  # E || score - kernel score ||^2
    wanted = ((high - low) * 0.5 * g**2 * error).mean().item()
    for times in (UniformTimes(), ImportanceTimes(), LogNormalTimes(mean=-0.5, std=2.0)):
        losses = DSM("likelihood", times)(Exact(schedule), {"x": _data(20000)}, torch.Generator().manual_seed(3))
        assert abs(losses.mean().item() - wanted) < 5 * losses.std().item() / 20000**0.5  # < 1e-6, seeds fixed
        if isinstance(times, ImportanceTimes):  # the point of importance sampling
            plain = DSM("likelihood", UniformTimes())(Exact(schedule), {"x": _data(20000)}, torch.Generator())
            assert losses.std() <= 1.01 * plain.std()


def test_evenly_spread_times_lower_the_variance_of_the_batch_loss():
    def batch_losses(stratified):
        objective = DSM("eps", LogNormalTimes(stratified=stratified))  # 1 at small noise, 0 at large
        denoiser, batch = Exact(EDM()), {"x": _data(64, 512)}
        return torch.stack([objective(denoiser, batch, torch.Generator().manual_seed(s)).mean() for s in range(60)])

    assert batch_losses(True).std() < 0.5 * batch_losses(False).std()


@pytest.mark.parametrize("stratified", [True, False])
def test_a_row_has_the_same_loss_however_the_batch_is_split(stratified):
    objective = DSM("edm", LogNormalTimes(stratified=stratified), label_dropout=0.5)
    denoiser, x, labels = Exact(EDM(), num_classes=3), _data(12), torch.arange(12) % 3
    whole = objective(denoiser, {"x": x, "class_labels": labels}, torch.Generator().manual_seed(5))
    parts = []
    for rows in torch.arange(12).split(5):
        batch = {"x": x[rows], "class_labels": labels[rows], "rows": rows, "total": 12}
        parts.append(objective(denoiser, batch, torch.Generator().manual_seed(5)))
    assert torch.equal(torch.cat(parts), whole)


def test_another_generator_gives_other_noise():
    losses = [DSM()(Exact(EDM()), {"x": _data(8)}, torch.Generator().manual_seed(s)) for s in (0, 1)]
    assert not torch.isclose(*losses).any()


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_labels_are_dropped_at_the_rate_that_was_asked_for(rate):
    denoiser = Exact(EDM(), num_classes=10)
    batch = {"x": _data(20000, 1), "class_labels": torch.arange(20000) % 10}
    DSM(label_dropout=rate)(denoiser, batch, torch.Generator().manual_seed(0))
    seen = denoiser.seen["class_labels"]
    dropped = seen == 10
    assert abs(dropped.double().mean().item() - rate) <= 5 * (rate * (1 - rate) / 20000) ** 0.5  # < 1e-6
    assert torch.equal(seen[~dropped], batch["class_labels"][~dropped])


def test_further_conditions_reach_the_denoiser_and_bookkeeping_does_not():
    denoiser = Exact(EDM())
    batch = {
        "x": _data(4),
        "class_labels": torch.zeros(4).long(),
        "rows": torch.arange(4),
        "total": 4,
        "text": torch.ones(4),
    }
    DSM()(denoiser, batch, torch.Generator())
    assert set(denoiser.seen) == {"text"}  # an unconditional denoiser gets no labels


def test_a_conditional_denoiser_needs_labels():
    with pytest.raises(ValueError, match="no class_labels"):
        DSM()(Exact(EDM(), num_classes=2), {"x": _data(4)}, torch.Generator())


@pytest.mark.parametrize("view", ["mean", "eps", "v"])
def test_a_shifted_target_is_fitted_by_the_shifted_mean(view):
    """What a correction of the posterior mean needs: the error of mean + shift against x_0 + shift is that of mean."""
    schedule, batch = VPLinear(), {"x": _data(16, dtype=torch.float64)}
    denoiser = Exact(schedule, view)
    noisy = add_noise(denoiser, batch, torch.Generator().manual_seed(0), UniformTimes(t_min=0.05))
    plain = denoiser(noisy.x_t, noisy.t)
    shift = torch.randn(16, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = plain.mean + shift
    eps = (noisy.x_t - plain.alpha * mean) / plain.sigma
    views = {"mean": mean, "eps": eps, "v": plain.alpha * eps - plain.sigma * mean}
    moved = Posterior(noisy.x_t, plain.alpha, plain.sigma, **{view: views[view]})
    error, factor = squared_error(moved, noisy, schedule, shift)
    wanted, _ = squared_error(plain, noisy, schedule)
    torch.testing.assert_close(error, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(error * factor, (plain.mean - noisy.x_0).square().mean(1), rtol=1e-6, atol=1e-9)


def test_one_truncation_for_a_whole_batch_is_a_replaced_time_sampler():
    times = replace(UniformTimes(), t_min=0.4)
    noisy = add_noise(Exact(VPLinear()), {"x": _data(256)}, torch.Generator().manual_seed(0), times)
    assert noisy.t.min() >= 0.4
    torch.testing.assert_close(noisy.density, torch.full((256,), 1 / 0.6, dtype=torch.float64))


def test_the_edm_weight_makes_the_loss_of_every_level_that_of_the_raw_network():
    """lambda(sigma) c_out^2 = 1: with a network that answers 0, E loss = E || target ||^2 = 1 for data of unit scale sd."""

    class Zero(torch.nn.Module):
        def forward(self, x, label):
            return torch.zeros_like(x)

    x = 0.5 * torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    for sigma in (0.01, 0.5, 20.0):
        times = UniformTimes(t_min=sigma, t_max=1.0001 * sigma)
        loss = DSM("edm", times)(EDMDenoiser(Zero(), EDM()), {"x": x}, torch.Generator().manual_seed(0)).mean()
        assert abs(loss.item() - 1.0) < 0.02  # 4096 x 64 chi-squared numbers: standard error 0.003


def test_small_noise_keeps_its_digits():
    """At sigma = 0.002 the eps loss of a data-predicting model that is off by 1e-3 sigma is 1e-6, in float32."""

    class Shifted(torch.nn.Module):
        def forward(self, x, label):
            return self.x_0 + 2e-6

    net = Shifted()
    net.x_0 = 0.01 * torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    denoiser = DataDenoiser(net, EDM())
    loss = DSM("eps", UniformTimes(t_min=0.002, t_max=0.0020001))(denoiser, {"x": net.x_0}, torch.Generator()).mean()
    assert abs(loss.item() / 1e-6 - 1) < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "snr"}, "Unknown weighting"),
        ({"times": "uniformly"}, "Did you mean 'uniform'"),
        ({"label_dropout": 1.5}, "label_dropout"),
        ({"sigma_data": 0.0}, "sigma_data"),
    ],
)
def test_wrong_options_get_one_clear_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        DSM(**options)


def test_weights_are_float64_and_one_per_row():
    t = torch.tensor([0.01, 0.5], dtype=torch.float64)
    w = data_weight("edm", t, EDM(), 0.5, 4, torch.ones(2))
    torch.testing.assert_close(w, (t**2 + 0.25) / (0.5 * t) ** 2, rtol=1e-12, atol=0)
