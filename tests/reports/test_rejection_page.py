"""The pages about rejection and about a critic, where they put a number into words or a curve before another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trueward.critics import CriticRecord, TruthCritic
from trueward.critics.calibration import BINS, Calibration
from trueward.data import Dataset
from trueward.drawing import Drawing
from trueward.refinement import Cost, RefinedSampler
from trueward.reports.critic_page import page
from trueward.reports.rejection_page import Account, write_report
from trueward.reports.witness import Witness, figure
from trueward.samplers import EDMHeun
from trueward.schedules import EDM
from trueward.truth import GaussianMixture

REAL = GaussianMixture([0.5, 0.5], [[-0.5], [0.5]], 0.01)
MODEL = GaussianMixture([0.2, 0.8], [[-0.5], [0.5]], 0.01)


@pytest.mark.parametrize(
    ("evaluations", "words"), [(12, "+9% over the 11"), (21, "+91% over the 11"), (550, "50 times the 11 of the plain")]
)
def test_the_cost_is_told_as_a_share_or_as_a_multiple(evaluations: int, words: str, tmp_path: Path) -> None:
    sampler = RefinedSampler(EDMHeun(6), TruthCritic(REAL, MODEL, EDM()), rejection={"warm_up": 20})
    drawing = Drawing(MODEL.denoiser(EDM()), sampler)
    tables = ([[4] * 7, [4] * 7], [[3] * 7, [2] * 7], [[0] * 7 for _ in range(7)])
    account = Account(Cost(4, 4 * evaluations, 4 * evaluations, 40, 0, 0, *tables), torch.full((4,), evaluations))
    text = write_report(tmp_path / "r.html", drawing, account).read_text()
    assert f"network evaluations per sample, {words}" in text


def test_the_diagonal_lies_under_the_reliability_of_the_critic_and_both_are_named() -> None:
    sharp = [[0.01] + [float("nan")] * 8 + [0.99]] * BINS
    count = [[50] + [0] * 8 + [50]] * BINS
    flat = [0.5] * BINS
    calibration = Calibration([float(k) for k in range(BINS + 1)], flat, flat, sharp, sharp, count)
    history = [{"step": 1, "training": 0.5, "held_out": 0.5}]
    text = page(CriticRecord(1, 1, 10, 10, 0.1, history, calibration, {}), [], "mine", {})
    section = text[text.index("Are its probabilities honest?") :]
    chart = section[section.index('<svg class="chart"') :]
    assert chart.index('class="series-7"') < chart.index('class="series-0"')  # what comes later lies above
    for name in ("this critic", "honest"):
        assert f"<span>{name}</span>" in section


def test_without_real_samples_the_log_ratios_of_the_others_are_shown(tmp_path: Path) -> None:
    sampler = RefinedSampler(EDMHeun(6), TruthCritic(REAL, MODEL, EDM()), rejection={"warm_up": 20})
    tables = ([[4] * 7, [4] * 7], [[3] * 7, [2] * 7], [[0] * 7 for _ in range(7)])
    account = Account(Cost(4, 48, 48, 40, 0, 0, *tables), torch.full((4,), 12))
    drawing = Drawing(MODEL.denoiser(EDM()), sampler)
    alone = write_report(tmp_path / "a.html", drawing, account).read_text()
    real = Dataset(REAL.sample(50, torch.Generator().manual_seed(0)).float())
    beside = write_report(tmp_path / "b.html", drawing, account, real).read_text()
    for text, named in ((alone, False), (beside, True)):
        section = text[text.index("What the critic says of the results") :]
        assert section.count('<svg class="chart"') == 3
        assert ("<span>real</span>" in section) == named
        assert ("no real samples to show beside them: name some with --data" in section) == (not named)
        for name in ("plain sampler", "refined"):
            assert f"<span>{name}</span>" in section


def test_signals_are_shown_as_curves_within_their_fields() -> None:
    x = torch.stack([torch.linspace(-1.0, 1.0, 5), torch.full((5,), 9.0)])[:, None]
    witness = Witness(x[:1], x[:1], None, [1], {(1, False): (x, 7)})
    count, picture = figure(witness, 1, False, None)
    assert count == 7
    numbers = [
        [float(v) for v in p.replace("L", " ").split()] for p in picture.split('d="M')[1].split('"')[0].split("M")
    ]
    rising, flat = (list(zip(p[::2], p[1::2])) for p in numbers)
    assert [a for a, _ in rising] == sorted(a for a, _ in rising)
    assert [b for _, b in rising] == sorted((b for _, b in rising), reverse=True)  # up is less in SVG
    assert len({b for _, b in flat}) == 1  # cut at the upper end of its field
    assert flat[0][1] < rising[-1][1]
    assert all(45 <= a <= 90 and 0 <= b <= 45 for a, b in flat)  # the second of four fields in 180 pixels
    assert figure(Witness(x, x, None, [1], {}), 1, False, None) is None
