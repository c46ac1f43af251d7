"""`check` names planted mistakes and passes what is right, on exact networks and on trained ones."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from trueward.checking import AGREES, WEAK, WRONG, Report, check
from trueward.denoisers import ClassifierFreeGuidance, denoiser, prediction_names
from trueward.schedules import EDM, VE, DiscreteSchedule, FlowMatching, VPCosine, VPLinear
from trueward.truth import GaussianMixture

DDPM = DiscreteSchedule.linear()


def picture_law():
    """Six kinds of 4x4 "images" in about [-1, 1], in which some pixels hardly vary: like pictures, unlike noise."""
    generator = torch.Generator().manual_seed(5)
    means = (0.3 + 0.9 * torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)).clamp(-0.9, 0.9)
    std = torch.full((6, 1, 4, 4), 0.05, dtype=torch.float64)
    std[:, :, :2] = 0.003
    return GaussianMixture([1 / 6] * 6, means, std**2), std**2


LAW, LAW_VARIANCES = picture_law()
CLASSES = torch.arange(6)
DATA, LABELS = LAW.draw(256, torch.Generator().manual_seed(0))
DATA = DATA.float()


class Exact(nn.Module):
    """The perfect network of a schedule: answers `prediction` to its own time input."""

    def __init__(self, schedule, prediction="eps", time=None, classes=None):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction
        self.truth = LAW.denoiser(schedule, classes=classes)
        nodes = getattr(schedule, "nodes", None)
        self.time = time or ((lambda n: (n + 1) / nodes) if nodes else lambda t: t)

    def forward(self, x, label, **condition):
        t = self.time(label.double()).clamp(self.schedule.t_min, self.schedule.t_max)
        _, sigma = self.schedule.coefficients(t, x.double())
        if (
            self.prediction == "edm"
        ):  # asked with x / sqrt(s^2 + 1/4), answers what the preconditioning turns into the mean
            norm = (sigma**2 + 0.25).sqrt()
            y = x * norm
            return (self.truth(y, t, **condition).mean - 0.25 / norm**2 * y) * norm / (0.5 * sigma)
        p = self.truth(x.double(), t, **condition)
        answers = {"eps": p.eps, "x0": p.mean, "v": p.v, "score": p.score, "flow": p.eps - p.mean}
        return answers[self.prediction].float()


class Changed(nn.Module):
    """A network behind a change of its output."""

    def __init__(self, network, out):
        super().__init__()
        self.network, self.out = network, out

    def forward(self, x, label, **condition):
        return self.out(self.network(x, label, **condition))


EDM_TIME = {"prediction": "edm", "time": lambda label: torch.exp(4.0 * label)}

RIGHT = {
    "ddpm": (Exact(DDPM), DDPM, "eps", {}),
    "ddpm v": (Exact(DDPM, "v"), DDPM, "v", {}),
    "ddpm x0": (Exact(DDPM, "x0"), DDPM, "x0", {}),
    "cosine": (Exact(DiscreteSchedule.cosine()), DiscreteSchedule.cosine(), "eps", {}),
    "vp score": (Exact(VPLinear(), "score"), VPLinear(), "score", {}),
    "vp 1000": (Exact(VPLinear(), time=lambda n: n / 1000), VPLinear(), "eps", {"label": lambda t: 1000 * t}),
    "vp cosine": (Exact(VPCosine()), VPCosine(), "eps", {}),
    "flow": (Exact(FlowMatching(), "flow"), FlowMatching(), "flow", {}),
    "edm": (Exact(EDM(), **EDM_TIME), EDM(), "edm", {}),
    "ve": (Exact(VE()), VE(), "eps", {}),
}

WRONGS = {
    "v as eps": (Exact(DDPM, "v"), DDPM, "eps", {}, "prediction", "'v'"),
    "eps as x0": (Exact(DDPM), DDPM, "x0", {}, "prediction", "'eps'"),
    "x0 as eps": (Exact(DDPM, "x0"), DDPM, "eps", {}, "prediction", "'x0'"),
    "eps as score": (Exact(VPLinear()), VPLinear(), "score", {}, "prediction", "'eps'"),
    "flow as v": (Exact(FlowMatching(), "flow"), FlowMatching(), "v", {}, "prediction", "'flow'"),
    "sign of eps": (Changed(Exact(DDPM), torch.neg), DDPM, "eps", {}, "sign", "negate"),
    "sign of the velocity": (Changed(Exact(FlowMatching(), "flow"), torch.neg), FlowMatching(), "flow", {}, "sign", ""),
    "time in [0, 1], 0 ... 1000 expected": (
        Exact(VPLinear(), time=lambda n: n / 1000), VPLinear(), "eps", {}, "time scale", "by 1000"),
    "time 0 ... 1000, [0, 1] expected": (
        Exact(VPLinear()), VPLinear(), "eps", {"label": lambda t: 1000 * t}, "time scale", "0.001"),
    "one node too late": (
        Exact(DDPM), DDPM, "eps", {"label": lambda t: 1000 * t}, "off by one", "Add -1 "),
    "one node too early": (
        Exact(DDPM, "v"), DDPM, "v", {"label": lambda t: 1000 * t - 2}, "off by one", "Add 1 "),
    "reversed time": (Exact(VPCosine(), time=lambda t: VPCosine().t_max + 1e-3 - t), VPCosine(), "eps", {}, "reversed time", ""),
    "linear table, cosine network": (Exact(DiscreteSchedule.cosine()), DDPM, "eps", {}, "schedule", "cosine"),
    "cosine table, linear network": (Exact(DDPM), DiscreteSchedule.cosine(), "eps", {}, "schedule", "linear()"),
    "variance exploding network in a preserving process": (
        Exact(EDM(), **EDM_TIME | {"prediction": "eps"}), VPLinear(), "eps", {}, "superfluous alpha", "EDM()"),
    "preserving network in an exploding process": (Exact(DDPM), EDM(), "eps", {}, "missing alpha", "linear()"),
    "x_t / alpha expected": (
        Exact(EDM(0.002, 300.0), time=lambda t: VPLinear().sigma(t) / VPLinear().alpha(t)),
        VPLinear(), "eps", {}, "superfluous alpha", "keep their scale"),
    "sigma_data": (Exact(EDM(), **EDM_TIME), EDM(), "edm", {"sigma_data": 1.5}, "sigma_data", "0.5"),
    "noise level as input": (
        Exact(EDM(), time=lambda s: s), EDM(), "eps", {}, "time input", "sigma"),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT, ids=str)
def test_what_is_right_passes(case):
    network, schedule, prediction, options = RIGHT[case]
    report = check(denoiser(network, schedule, prediction, **options), DATA)
    assert report.verdict == AGREES, f"{case}\n{report}"
    assert report.mistake is None
    assert all(level.ratio < 1.1 for level in report.levels)


@pytest.mark.parametrize("case", WRONGS, ids=str)
def test_a_planted_mistake_is_named(case):
    network, schedule, prediction, options, name, remedy = WRONGS[case]
    report = check(denoiser(network, schedule, prediction, **options), DATA)
    assert report.verdict == WRONG
    assert report.mistake == name, f"{case}\n{report}"
    assert remedy in report.mistakes[0].remedy, str(report)
    assert report.mistakes[0].after < 1.05
    assert report.mistakes[0].before > report.mistakes[0].after


@pytest.mark.parametrize(
    ("data", "remedy"),
    [(0.5 * DATA + 0.5, "[-1, 1], not in [0, 1]"), (127.5 * DATA + 127.5, "[-1, 1], not in [0, 255]")],
    ids=["0-1", "0-255"],
)
def test_a_wrong_data_range_is_named(data, remedy):
    report = check(denoiser(Exact(DDPM), DDPM), data)
    assert report.mistake == "data range", str(report)
    assert remedy in report.mistakes[0].remedy


def test_data_that_should_be_standardised_are_named():
    mean, std = DATA.mean().item(), DATA.std().item()
    report = check(denoiser(Exact(DDPM), DDPM), 40.0 * (DATA - mean) / std + 100.0)
    assert report.verdict != AGREES
    network = Exact(DDPM)
    law = GaussianMixture(LAW.weights, (LAW.means - mean) / std, LAW_VARIANCES / std**2)
    network.truth = law.denoiser(DDPM)
    report = check(denoiser(network, DDPM), 40.0 * (DATA - mean) / std + 100.0)
    assert report.mistake == "data range", str(report)
    assert "subtract 100" in report.mistakes[0].remedy


def test_data_outside_the_declared_range_are_noted():
    report = check(denoiser(Exact(DDPM), DDPM, data_range=(0.0, 0.5)), DATA)
    assert any("outside the model's data_range" in note for note in report.notes)


def conditional(null=True):
    network = Exact(DDPM, classes=CLASSES)
    return denoiser(network, DDPM, num_classes=6, shape=(1, 4, 4))


def test_class_labels_are_used_and_shifted_ones_are_named():
    assert check(conditional(), DATA, LABELS).ok
    assert check(conditional(), DATA).ok  # the network knows "no class"
    shifted = check(conditional(), DATA, (LABELS + 1) % 6)
    assert shifted.mistake == "labels"
    assert "add -1" in shifted.mistakes[0].remedy


def test_missing_labels_are_named():
    class NoNull(nn.Module):  # without a null class the last embedding is just another class
        def __init__(self):
            super().__init__()
            self.network = Exact(DDPM, classes=CLASSES)

        def forward(self, x, label, class_labels=None):
            if class_labels is None:
                raise ValueError("class_labels should be provided when num_class_embeds > 0")
            return self.network(x, label, class_labels=class_labels.clamp(max=5))

    assert check(denoiser(NoNull(), DDPM, num_classes=6), DATA, LABELS).ok
    assert check(denoiser(NoNull(), DDPM, num_classes=6), DATA).mistake == "labels missing"
    refused = check(denoiser(NoNull(), DDPM), DATA)
    assert (refused.mistake, refused.verdict) == ("labels missing", WRONG)


def test_two_mistakes_at_once_are_both_named():
    network = Changed(Exact(DDPM), torch.neg)
    report = check(denoiser(network, DDPM, label=lambda t: t), DATA)
    assert {m.name for m in report.mistakes} == {"sign", "time scale"} or report.mistakes[-1].after < 1.05, str(report)
    assert report.verdict == WRONG


def test_a_network_that_learned_nothing_is_weak_and_not_accused():
    torch.manual_seed(0)
    random = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Unflatten(1, (1, 4, 4)))
    report = check(denoiser(Changed(TakesTime(random), lambda y: y), DDPM), DATA)
    assert report.verdict == WEAK, str(report)
    assert "barely trained" in str(report)


def test_a_poor_model_costs_at_most_about_three_times_a_good_one():
    class Counted(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.rows = network, 0

        def forward(self, x, label):
            self.rows += len(x)
            return self.network(x, label)

    torch.manual_seed(0)
    random = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Unflatten(1, (1, 4, 4)))
    good, poor = Counted(Exact(DDPM)), Counted(Changed(TakesTime(random), lambda y: y))
    assert check(denoiser(good, DDPM), DATA).verdict == AGREES
    assert check(denoiser(poor, DDPM), DATA).verdict == WEAK
    assert good.rows < poor.rows < 3.5 * good.rows


class TakesTime(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, label):
        return self.network(x)


class Small(nn.Module):
    """A small network for 4x4 images with a Fourier embedding of its label, 0 ... 1000."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 16))

    def forward(self, x, label):
        phase = label.view(-1, 1).to(x) * 1e-3 * torch.pi * 2.0 ** torch.arange(-1, 7).to(x)
        return self.net(torch.cat([x.flatten(1), phase.sin(), phase.cos()], 1)).view_as(x)


@pytest.fixture(scope="module")
def trained():
    """Small networks trained for a moment, as a user would."""
    generator = torch.Generator().manual_seed(0)
    networks = {}
    for prediction in ("eps", "v"):
        torch.manual_seed(1)
        network = Small()
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(500):
            x = DATA[torch.randint(256, (256,), generator=generator)]
            n = torch.randint(1000, (256,), generator=generator)
            eps = torch.randn(x.shape, generator=generator)
            t = DDPM.time_of_node(n)
            alpha, sigma = DDPM.coefficients(t, x)
            target = eps if prediction == "eps" else alpha * eps - sigma * x
            loss = (network(alpha * x + sigma * eps, n) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        networks[prediction] = network.eval()
    return networks


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_trained_network_passes_and_its_misuse_does_not(trained, prediction):
    network, data = trained[prediction], DATA
    report = check(denoiser(network, DDPM, prediction), data)
    assert report.ok, str(report)
    wrong = check(denoiser(network, DDPM, {"eps": "v", "v": "eps"}[prediction]), data)
    assert wrong.mistake == "prediction"
    assert f"'{prediction}'" in wrong.mistakes[0].remedy
    cosine = check(denoiser(network, DiscreteSchedule.cosine(), prediction), data)
    assert cosine.verdict == WRONG
    assert cosine.mistake == "schedule", str(cosine)


def test_guidance_is_taken_off_and_a_denoiser_without_network_is_checked_too():
    guided = ClassifierFreeGuidance(conditional(), 3.0)
    report = check(guided, DATA, LABELS)
    assert report.ok
    assert any("ClassifierFreeGuidance" in note for note in report.notes)
    exact = LAW.denoiser(VPLinear())
    assert check(exact, DATA).ok
    assert check(exact, 0.5 * DATA + 0.5).mistake == "data range"


def test_the_bounds_are_the_closed_forms():
    report = check(denoiser(Exact(VPLinear()), VPLinear()), DATA)
    v = DATA.double().flatten(1).var(0)
    for level in report.levels:
        s2 = math.exp(-level.log_snr)
        assert level.identity == pytest.approx(s2)
        assert level.constant == pytest.approx(v.mean().item())
        assert level.linear == pytest.approx((v * s2 / (v + s2)).mean().item())
        assert level.linear <= min(level.identity, level.constant)


def test_the_report_is_readable_and_storable():
    report = check(denoiser(Exact(DDPM, "v"), DDPM, "eps"), DATA)
    assert isinstance(report, Report)
    text = str(report)
    assert "Use prediction='v'." in text
    assert len(text.splitlines()) == len(report.levels) + 3
    assert json.loads(json.dumps(report.to_dict()))["mistakes"][0]["name"] == "prediction"


def test_the_same_seed_gives_the_same_report():
    model = denoiser(Exact(DDPM), DDPM)
    assert check(model, DATA, seed=3) == check(model, DATA, seed=3)
    assert check(model, DATA, seed=3) != check(model, DATA, seed=4)


def test_bad_data_are_explained():
    model = denoiser(Exact(DDPM), DDPM, shape=(1, 4, 4))
    with pytest.raises(ValueError, match="at least 16 samples"):
        check(model, DATA[:4])
    with pytest.raises(ValueError, match="NaN"):
        check(model, torch.full((20, 1, 4, 4), math.nan))
    with pytest.raises(ValueError, match=r"shape \(4, 4\), but the denoiser takes \(1, 4, 4\)"):
        check(model, DATA[:, 0])
    with pytest.raises(ValueError, match=r"labels must be \(256,\)"):
        check(model, DATA, LABELS[:7])
    with pytest.raises(ValueError, match="levels must be at least 3"):
        check(model, DATA, levels=2)


def test_every_prediction_has_a_name():
    assert prediction_names() == ["eps", "x0", "v", "score", "flow", "edm"]
