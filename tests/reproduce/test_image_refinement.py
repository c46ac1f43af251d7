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
        assert first["summary"][f"{spec} 2 DG"]["nfe"] == first["summary"][f"{spec} 2 base"]["nfe"]
        assert (
            first["summary"][f"{spec} 2 DiffRS"]["nfe"]["value"] >= first["summary"][f"{spec} 2 base"]["nfe"]["value"]
        )
        assert f"critic {spec}-2-guided" in first["cells"]
    assert (tmp_path / "out" / "refinement.png").stat().st_size > 10_000
    capsys.readouterr()
    again = image_refinement.run(*arguments, **SMALL, second=True)
    assert capsys.readouterr().out == ""
    assert again["cells"] == first["cells"]


def _summary(base, own, errors=0.01):
    def cells(values):
        return {name: {"value": value, "error": errors} for name, value in values.items()}

    return {"edm 9 base": cells(base), "edm 9 DiffRS": cells(own)}


def test_a_gain_within_the_noise_is_no_gain():
    base = {"frechet": 1.0, "precision": 0.8}
    assert claims(_summary(base, {"frechet": 0.98, "precision": 0.81}), [("edm", 9)]) == {
        "DiffRS: edm, 9 steps: lower Frechet distance": False,
        "DiffRS: edm, 9 steps: better single samples": False,
    }
    assert all(claims(_summary(base, {"frechet": 0.9, "precision": 0.85}), [("edm", 9)]).values())
    assert not any(claims(_summary(base, {"frechet": 1.1, "precision": 0.75}), [("edm", 9)]).values())


def test_means_come_with_student_intervals():
    cells = {f"edm 9 base seed {seed}": {"frechet": value} for seed, value in enumerate((1.0, 2.0, 3.0))}
    found = summary(cells, [("edm", 9)], 3)["edm 9 base"]["frechet"]
    assert found["value"] == 2.0
    assert found["high"] - found["value"] == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)


def test_the_verdict_says_how_many_claims_hold():
    assert verdict({"a": True}) == "reproduced"
    assert verdict({"a": True, "b": False}) == "partly reproduced"
    assert verdict({}) == "not reproduced"
