"""The pages about rejection and about a critic, where they put a number into words or a curve before another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trueward.critics import CriticRecord, TruthCritic
from trueward.critics.calibration import BINS, Calibration
from trueward.drawing import Drawing
from trueward.refinement import Cost, RefinedSampler
from trueward.reports.critic_page import page
from trueward.reports.rejection_page import Account, write_report
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
