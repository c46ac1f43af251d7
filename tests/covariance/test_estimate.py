"""The estimator of gamma: right on closed forms, independent of batching, as precise as it says."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from covariance.exact import LINEAR, IsotropicGaussian, TwoPoints, node, two_point_gamma
from trueward.covariance import estimate_gamma, measured_times
from trueward.covariance.averages import Averages
from trueward.denoisers import Denoiser, Posterior
from trueward.schedules import EDM, VE, VPLinear


def signs(n, seed=0, dtype=torch.float64):
    return torch.randint(0, 2, (n, 1), generator=torch.Generator().manual_seed(seed)).to(dtype) * 2 - 1


NODES = [node(n) for n in (100, 200, 300, 500)]


@pytest.mark.parametrize("control", [False, True])
def test_the_estimate_agrees_with_quadrature_within_its_error(control):
    table = estimate_gamma(
        TwoPoints(), signs(20_000), num_samples=20_000, times=NODES, batch_size=20_000, control_variate=control
    )
    exact = np.array([two_point_gamma(n) for n in (100, 200, 300, 500)])
    assert (np.abs(table.gamma - exact) < 4 * table.gamma_error).all()  # false alarm 2.5e-4
    assert (np.abs(table.residual - (1 - exact)) < 4 * table.residual_error).all()
    assert (table.count == 20_000).all()


def test_the_error_bar_is_the_scatter_of_repetitions():
    runs = [
        estimate_gamma(TwoPoints(), signs(200, seed), num_samples=200, times=NODES, seed=seed, control_variate=False)
        for seed in range(60)
    ]
    scatter = np.std([run.gamma for run in runs], axis=0, ddof=1)
    stated = np.sqrt(np.mean([run.gamma_error**2 for run in runs], axis=0))
    # the scatter of 60 repetitions is known to 9%: false alarm below 1e-4 at 40%
    assert (np.abs(scatter / stated - 1) < 0.4).all()


def test_the_known_noise_removes_the_error_where_the_prediction_follows_the_noise():
    plain, better = (
        estimate_gamma(TwoPoints(), signs(500), num_samples=500, times=[1.0], control_variate=c) for c in (False, True)
    )
    assert better.gamma_error[0] < 0.05 * plain.gamma_error[0]
    assert better.gamma[0] <= 1.0 + 4 * better.gamma_error[0]


def test_batches_do_not_change_the_table():
    data = signs(10)
    a = estimate_gamma(TwoPoints(), data, num_samples=10, times=NODES, batch_size=4)
    b = estimate_gamma(TwoPoints(), data, num_samples=10, times=NODES, batch_size=10)
    c = estimate_gamma(TwoPoints(), data, num_samples=10, times=NODES[:2], batch_size=1000)
    assert np.abs(a.gamma - b.gamma).max() < 1e-12
    assert np.abs(a.residual - b.residual).max() < 1e-12
    assert np.abs(a.gamma[:2] - c.gamma).max() < 1e-12  # other levels neither


def test_examples_are_averaged_not_batch_means():
    class Counting(Denoiser):
        """eps is the (constant) datum times 10, so gamma is the mean of 100 x^2 over examples."""

        def __init__(self):
            super().__init__(LINEAR, shape=(1,))

        @property
        def dtype(self):
            return torch.float64

        def forward(self, x_t, t, **condition):
            alpha, sigma = self.schedule.coefficients(t, x_t)
            return Posterior(x_t, alpha, sigma, eps=torch.full_like(x_t, float(len(x_t))))

    # batches of 4, 4, 2 answer 16, 16, 4: by example 136 / 10, by batch 12
    table = estimate_gamma_quietly(
        Counting(), signs(10), num_samples=10, times=[0.5], batch_size=4, control_variate=False
    )
    assert table.gamma[0] == pytest.approx(13.6)


def estimate_gamma_quietly(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimate_gamma(*args, **options)


def test_a_stated_relative_error_is_reached_with_as_few_examples_as_each_level_needs():
    table = estimate_gamma(
        TwoPoints(), signs(20_000), relative_error=0.012, times=[*NODES, 0.9, 1.0], max_samples=20_000
    )
    assert (table.gamma_error <= 0.012 * table.gamma).all()
    assert table.count[-1] == 4096  # the least: nothing more to learn where the prediction is the noise
    assert 6000 < table.count[1] < 20_000
    exact = np.array([two_point_gamma(n) for n in (100, 200, 300, 500, 900, 1000)])
    assert (np.abs(table.gamma / exact - 1) < 0.054).all()  # 4.5 stated errors


def test_high_dimensions_need_few_examples():
    d = IsotropicGaussian(shape=(3, 8, 8))
    data = 0.5 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = estimate_gamma(d, data, relative_error=0.02, times=[node(n) for n in (1, 10, 100, 500, 1000)])
    alpha, sigma = (f(torch.as_tensor(table.times)).numpy() for f in (LINEAR.alpha, LINEAR.sigma))
    exact = sigma**2 / (0.25 * alpha**2 + sigma**2)
    assert (np.abs(table.gamma / exact - 1) < 0.09).all()
    assert table.count.min() == 22  # 4096 numbers
    assert table.count.sum() < 300


def test_the_relative_spread_falls_with_the_dimensions():
    # RSD of one example for Gaussian data is sqrt(2 / d): 0.1 for d = 192 (Bao et al. report below 0.05 at d = 3072)
    d = IsotropicGaussian(shape=(192,))
    data = 0.5 * torch.randn(2000, 192, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = estimate_gamma(d, data, num_samples=2000, times=[node(300)], control_variate=False)
    spread = table.gamma_error[0] * math.sqrt(2000) / table.gamma[0]
    assert spread == pytest.approx(math.sqrt(2 / 192), rel=0.07)  # known to 1.6%


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), VE()], ids=lambda s: type(s).__name__)
def test_continuous_schedules_are_measured_on_a_grid_and_interpolated(schedule):
    times = measured_times(schedule)
    assert len(times) == 256
    assert (np.diff(times) > 0).all()
    assert times[0] == pytest.approx(schedule.t_min, abs=1e-9)
    assert times[-1] == pytest.approx(schedule.t_max)
    data = 0.5 * torch.randn(200, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    table = estimate_gamma(IsotropicGaussian(schedule, shape=(32,)), data, num_samples=100, batch_size=4096)
    between = np.sqrt(times[1:] * times[:-1]) if schedule.t_min > 0 else 0.5 * (times[1:] + times[:-1])
    for kind, error in (("analytic", 0.05), ("analytic-residual", 0.05)):
        alpha, sigma = (f(torch.as_tensor(between)).numpy() for f in (schedule.alpha, schedule.sigma))
        exact = sigma**2 / (0.25 * alpha**2 + sigma**2)
        exact = exact if kind == "analytic" else 1 - exact
        got = table.at(between, kind)
        assert np.median(np.abs(got / exact - 1)) < error


class Labelled:
    """A data set of the shape the trainer takes: -1 has the class 0, +1 the class 1."""

    def __init__(self, n):
        self.x, self.labels = signs(n), (signs(n).flatten() > 0).long()

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return {"x": self.x[indices], "class_labels": self.labels[indices]}


class Classified(Denoiser):
    """Knows the datum from its class; without one it is :class:`TwoPoints`."""

    def __init__(self):
        super().__init__(LINEAR, shape=(1,), num_classes=2)

    @property
    def dtype(self):
        return torch.float64

    def forward(self, x_t, t, class_labels=None, **condition):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        mean = torch.where(class_labels == 2, torch.tanh(alpha * x_t / sigma**2)[:, 0], 2.0 * class_labels - 1)
        return Posterior(x_t, alpha, sigma, mean=mean[:, None])


def test_a_conditional_model_is_measured_with_the_labels_or_without():
    free = estimate_gamma(Classified(), Labelled(4000), num_samples=4000, times=NODES)
    given = estimate_gamma(Classified(), Labelled(4000), num_samples=4000, times=NODES, conditional=True)
    exact = np.array([two_point_gamma(n) for n in (100, 200, 300, 500)])
    assert (np.abs(free.gamma - exact) < 4.5 * free.gamma_error).all()
    assert given.gamma == pytest.approx(np.ones(4), abs=1e-9)  # the noise is known once the datum is
    assert given.residual == pytest.approx(np.zeros(4), abs=1e-9)
    with pytest.raises(ValueError, match="class labels"):
        estimate_gamma(Classified(), signs(10), num_samples=10, times=NODES, conditional=True)


def test_a_loader_of_batches_serves_too():
    data = signs(64)
    loader = [data[:40], data[40:]]
    a = estimate_gamma(TwoPoints(), loader, num_samples=64, times=NODES)
    assert (a.count == 64).all()
    with pytest.raises(ValueError, match="holds no example"):
        estimate_gamma(TwoPoints(), [], num_samples=1, times=NODES)


def test_bad_calls_are_told_in_one_sentence():
    for options, words in (
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"relative_error": 0.0}, "relative_error must be positive"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_samples": 11}, "data hold 10 examples"),
    ):
        with pytest.raises(ValueError, match=words):
            estimate_gamma(TwoPoints(), signs(10), times=NODES, **options)

    class Wrong(TwoPoints):
        def forward(self, x_t, t, **condition):
            p = super().forward(x_t, t)
            return p.replace(eps=p.eps * float("nan"))

    with pytest.raises(ValueError, match=r"NaN or infinity at t=0\.1"):
        estimate_gamma(Wrong(), signs(10), num_samples=10, times=NODES)

    class Guided(TwoPoints):
        def forward(self, x_t, t, **condition):
            p = super().forward(x_t, t)
            return p.replace(eps=p.eps * 3.0)

    with pytest.warns(UserWarning, match="gamma exceeds 1"):
        estimate_gamma(Guided(), signs(1000), num_samples=1000, times=NODES)


def test_averages_of_parts_add_up():
    torch.manual_seed(0)
    place, values = torch.randint(0, 3, (50,)), torch.rand(50, 2)
    whole, first, second = (Averages.empty(3, 2) for _ in range(3))
    whole.add(place, values)
    first.add(place[:20], values[:20])
    second.add(place[20:], values[20:])
    for a, b in zip(whole.estimate(0, False), (first + second).estimate(0, False)):
        assert np.allclose(a, b, rtol=1e-12)
    at = values[place == 1, 0].double()
    mean, error = whole.estimate(0, False)
    assert mean[1] == pytest.approx(at.mean().item())
    assert error[1] == pytest.approx(at.std().item() / math.sqrt(len(at)))


def _in_a_process(rank, world, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    table = estimate_gamma(TwoPoints(), signs(6000), relative_error=0.014, times=NODES, batch_size=128)
    np.save(f"{folder}/{rank}.npy", np.stack([table.gamma, table.residual, table.count]))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_work_and_return_the_same_table(tmp_path):
    import torch.multiprocessing as mp

    mp.spawn(_in_a_process, (2, str(tmp_path)), nprocs=2)
    alone = estimate_gamma(TwoPoints(), signs(6000), relative_error=0.014, times=NODES, batch_size=500)
    for rank in (0, 1):
        got = np.load(tmp_path / f"{rank}.npy")
        assert np.allclose(got, np.stack([alone.gamma, alone.residual, alone.count]), rtol=1e-9)
