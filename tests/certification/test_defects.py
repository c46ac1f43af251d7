"""Every planted defect fails the line it belongs to, and its sound twin passes it."""

from __future__ import annotations

from typing import Any

import pytest
from planted import (
    BadWord,
    ForgetsToCount,
    KeepsStateDuringACall,
    PromisesTooLittle,
    RemembersLastAnswer,
    ancestral,
    dies_at_two_steps,
    double_only,
    euler,
    flattens,
    hands_back_start,
    keeps_graph,
    looks_at_neighbours,
    miscounting,
    multistep,
    mutates_start,
    nan_at_one_step,
    noise_of_the_batch,
    noise_of_the_world,
    single_step,
    stops_converging,
)

from trueward.certification import Certificate, certify
from trueward.schedules import EDM, VPLinear

TWO = {"vp-linear": VPLinear(), "edm": EDM()}


def failed(certificate: Certificate) -> set[str]:
    return {finding.check for finding in certificate.findings if finding.verdict == "FAIL"}


@pytest.mark.parametrize(
    ("sound", "order"), [(euler, 1), (multistep(0.5), 2), (single_step(2 / 3), 3), (KeepsStateDuringACall(), 1)]
)
def test_sound_functions_converge_with_their_order(sound: Any, order: int) -> None:
    certificate = certify(sound, schedules=TWO, claims=order)
    assert failed(certificate) - {"two threads at once"} == set()
    assert all(cell.order is not None and abs(cell.order - order) < 0.25 for cell in certificate.cells)


def test_second_order_multistep_without_its_half_has_order_one() -> None:
    certificate = certify(multistep(1.0), schedules=TWO)
    assert failed(certificate) == {"convergence"}
    assert all(0.9 < cell.order < 1.2 for cell in certificate.cells if cell.order is not None)
    assert "(claims 2)" in certificate["convergence"].line


def test_third_order_single_step_with_r2_of_one_half_has_order_two() -> None:
    certificate = certify(single_step(0.5), schedules=TWO)
    assert failed(certificate) == {"convergence"}
    assert all(1.9 < cell.order < 2.1 for cell in certificate.cells if cell.order is not None)


def test_convergence_that_stops_on_a_rounded_grid_is_seen() -> None:
    certificate = certify(stops_converging, schedules=TWO, claims=1)
    assert "convergence" in failed(certificate)
    assert "stops converging" in certificate["convergence"].line


@pytest.mark.parametrize(
    ("defect", "check", "words"),
    [
        (RemembersLastAnswer(), "no state between calls", "after another one"),
        (KeepsStateDuringACall(), "two threads at once", "a thread's samples differ"),
        (mutates_start, "x_T unmodified", "was changed"),
        (hands_back_start, "x_T unmodified", "share memory"),
        (nan_at_one_step, "NaN-safety", "NaN or infinite samples with defaults at vp-linear, 1 steps"),
        (dies_at_two_steps, "NaN-safety", "IndexError"),
        (looks_at_neighbours, "independence of the batch", "from the same row in a batch of 64"),
        (noise_of_the_batch, "independence of the batch", "from the same row in a batch of 64"),
        (noise_of_the_batch, "seeds", "place in the batch"),
        (noise_of_the_world, "seeds", "same seed differ"),
        (noise_of_the_world, "global random state", "torch was moved"),
        (flattens, "shapes", "raises ValueError"),
        (double_only, "float32", "float64 samples"),
        (keeps_graph, "no gradient graph", "carry the gradient graph"),
        (miscounting(lambda schedule, steps: steps + 1), "network evaluations", "promises 2, made 1"),
        (ForgetsToCount(), "network evaluations", "made 2"),
        (PromisesTooLittle(), "network evaluations", "promises 0, made 1"),
        (ancestral(factor=0.7), "convergence", "the law stays away"),
        (ancestral(factor=1.4), "convergence", "the law stays away"),
        (ancestral(shared=True), "moments of the law", "covariance by"),
    ],
)
def test_a_planted_defect_fails_its_own_line(defect: Any, check: str, words: str) -> None:
    certificate = certify(defect, schedules=TWO)
    assert certificate[check].verdict == "FAIL"
    assert words in certificate[check].line
    assert not certificate.passed
    assert check in certificate.verdict


def test_a_sound_stochastic_function_passes() -> None:
    certificate = certify(ancestral(), schedules={"vp-linear": VPLinear()})

    assert certificate.passed
    assert certificate["convergence"].line.startswith("the law of the samples is approached with weak order 1.")


def test_the_one_option_that_gives_nan_is_named() -> None:
    found = certify(BadWord(), schedules={"vp-linear": VPLinear()})["NaN-safety"]
    assert found.verdict == "FAIL"
    assert any(detail["setting"] == "square=True" for detail in found.details)


def test_a_function_that_breaks_at_once_fails_with_its_error() -> None:
    def broken(denoiser: Any, schedule: Any, x_T: Any, steps: int) -> None:
        raise KeyError("sigmas")

    certificate = certify(broken)
    assert [finding.check for finding in certificate.findings] == ["a first run"]
    assert "KeyError: 'sigmas'" in certificate.verdict or "KeyError" in certificate.findings[0].line


def test_a_function_that_returns_no_tensor_is_told_so() -> None:
    certificate = certify(lambda denoiser, schedule, x_T, steps: [x_T], name="list")
    assert "must return a tensor" in certificate.findings[0].line
