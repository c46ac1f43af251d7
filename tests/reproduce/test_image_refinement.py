"""The experiment about corrections of image models: it measures, continues, and its verdict follows the numbers."""

import math

import pytest

from trueward.reproduce import image_refinement
from trueward.reproduce.image_refinement_claims import claims, summary, verdict

SMALL = {"generated": 40, "updates": 4, "batch_size": 20}


def test_every_method_is_measured_and_a_second_call_measures_nothing_again(tmp_path, capsys):
    arguments = ("digits", tmp_path / "out", tmp_path / "work", [("edm", 2), ("ddim", 2)], 2, 24)
    first = image_refinement.run(*arguments, **SMALL, second=True)
    for spec in ("edm", "ddim"):
        for method in ("base", "DG", "DiffRS", "DG + DiffRS"):
            cell = first["summary"][f"{spec} 2 {method}"]
            assert math.isfinite(cell["frechet"]["value"])
            assert cell["frechet"]["low"] < cell["frechet"]["value"] < cell["frechet"]["high"]
        assert first["summary"][f"{spec} 2 base"]["critic"]["value"] == 0
        assert first["summary"][f"{spec} 2 DG"]["nfe"]["gain_value"] == 0
        assert (
            first["summary"][f"{spec} 2 DiffRS"]["nfe"]["value"] >= first["summary"][f"{spec} 2 base"]["nfe"]["value"]
        )
        assert f"critic {spec}-2-guided" in first["cells"]
    assert (tmp_path / "out" / "refinement.png").stat().st_size > 10_000
    capsys.readouterr()
    again = image_refinement.run(*arguments, **SMALL, second=True)
    assert capsys.readouterr().out == ""
    assert again["cells"] == first["cells"]


def _claims(base, own):
    """Claims about DiffRS on two seeds, given as (frechet, precision) of each."""
    cells = {f"edm 9 base seed {i}": {"frechet": f, "precision": p} for i, (f, p) in enumerate(base)}
    cells |= {f"edm 9 DiffRS seed {i}": {"frechet": f, "precision": p} for i, (f, p) in enumerate(own)}
    return list(claims(summary(cells, [("edm", 9)], 2), [("edm", 9)]).values())


def test_a_gain_within_the_noise_is_no_gain():
    assert _claims([(1.0, 0.80), (1.2, 0.70)], [(1.1, 0.75), (1.05, 0.76)]) == [False, False]
    assert _claims([(1.0, 0.80), (1.2, 0.70)], [(1.1, 0.70), (1.31, 0.61)]) == [False, False]


def test_gains_are_differences_seed_by_seed():
    # the seeds differ by far more than the method gains, but it gains in each
    assert _claims([(1.0, 0.80), (1.9, 0.60)], [(0.9, 0.85), (1.81, 0.64)]) == [True, True]


def test_means_come_with_student_intervals():
    cells = {f"edm 9 base seed {seed}": {"frechet": value} for seed, value in enumerate((1.0, 2.0, 3.0))}
    found = summary(cells, [("edm", 9)], 3)["edm 9 base"]["frechet"]
    assert found["value"] == 2.0
    assert found["high"] - found["value"] == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)


def test_the_verdict_says_how_many_claims_hold():
    assert verdict({"a": True}) == "reproduced"
    assert verdict({"a": True, "b": False}) == "partly reproduced"
    assert verdict({}) == "not reproduced"
