"""The experiment about reverse variances: it measures, continues, and its verdict follows the numbers."""

import json
import math

import pytest

from trueward.reproduce import reverse_variance
from trueward.reproduce.reverse_variance_claims import claims, summary, verdict


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return reverse_variance.digits_model(tmp_path_factory.mktemp("digits"), updates=20, head_updates=5, gamma_samples=2)


def test_every_variance_is_measured_and_a_second_call_measures_nothing_again(model, tmp_path, capsys):
    arguments = (str(model), tmp_path, [2, 3], 2, 20)
    first = reverse_variance.run(*arguments, test_samples=10)
    for kind in ("beta-tilde", "beta", "analytic", "analytic-residual", "npr", "npr-floor"):
        assert math.isfinite(first["cells"][f"bits {kind} even 2"]["value"])
        assert math.isfinite(first["cells"][f"bits {kind} optimal 3"]["value"])
    assert "bits sn even 2" not in first["cells"]
    assert first["summary"]["values sn 0 3"]["seeds"] == 2
    assert first["summary"]["features npr 1 2"]["error"] > 0
    assert first["verdict"] in ("reproduced", "partly reproduced", "not reproduced")
    for name in ("variances.png", "distances.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    capsys.readouterr()
    again = reverse_variance.run(*arguments, test_samples=10)
    assert capsys.readouterr().out == ""
    assert again["cells"] == first["cells"]
    assert again["claims"] == first["claims"]


def test_the_model_is_not_trained_twice(model):
    before = {path: path.stat().st_mtime_ns for path in model.rglob("model.safetensors")}
    assert len(before) >= 3
    reverse_variance.digits_model(model, updates=20, head_updates=5, gamma_samples=2)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_samples_of_one_seed_are_the_same_in_every_run(model, tmp_path):
    experiment = reverse_variance.Experiment.open(str(model), tmp_path)
    assert experiment.distances("npr", 3, 0.0, 1, 12) == experiment.distances("npr", 3, 0.0, 1, 12)
    assert experiment.distances("npr", 3, 0.0, 1, 12) != experiment.distances("npr", 3, 0.0, 2, 12)


def test_beta_with_and_without_the_clip_of_the_last_noise_are_two_baselines(model, tmp_path):
    experiment = reverse_variance.Experiment.open(str(model), tmp_path)
    assert experiment.distances("beta", 3, 1.0, 0, 20) != experiment.distances("beta-unclipped", 3, 1.0, 0, 20)


def _cells(analytic, beta, tilde):
    return {
        "bits analytic even 5": {"value": analytic},
        "bits beta even 5": {"value": beta},
        "bits beta-tilde even 5": {"value": tilde},
    }


def test_a_claim_holds_only_with_its_margin():
    assert claims(_cells(4.0, 4.5, 9.0), [5]) == {
        "bits, K=5: analytic < beta": True,
        "bits, K=5: beta < beta~": True,
    }
    assert claims(_cells(4.4, 4.5, 9.0), [5])["bits, K=5: analytic < beta"] is False
    assert claims(_cells(4.0, 9.0, 4.5), [5])["bits, K=5: beta < beta~"] is False
    assert claims({}, [5]) == {}


def test_distances_are_averaged_over_seeds_with_their_standard_error():
    cells = {f"frechet sn 1 5 seed {seed}": {"values": value} for seed, value in enumerate((1.0, 2.0, 3.0))}
    found = summary(cells, [5], 3)["values sn 1 5"]
    assert found["value"] == 2.0
    assert found["error"] == pytest.approx(1 / math.sqrt(3))
    assert found["seeds"] == 3
    assert math.isnan(summary(cells, [5], 1)["values sn 1 5"]["error"])


def test_a_learned_variance_must_win_by_its_margin():
    found = {"values sn 1 5": {"value": 0.98}, "values npr 1 5": {"value": 1.0}, "values analytic 1 5": {"value": 1.2}}
    held = claims(found, [5])
    assert held["Frechet of values, K=5: sn-DDPM < npr-DDPM"] is False
    assert held["Frechet of values, K=5: npr-DDPM < analytic-DDPM"] is True


def test_the_verdict_says_how_many_claims_hold():
    assert verdict({"a": True, "b": True}) == "reproduced"
    assert verdict({"a": True, "b": False}) == "partly reproduced"
    assert verdict({"a": False}) == verdict({}) == "not reproduced"


def test_the_record_is_json(model, tmp_path):
    reverse_variance.run(str(model), tmp_path, [2], 1, 10, test_samples=4)
    assert json.loads((tmp_path / "table.json").read_text())["precision"] == "float32"


def test_each_method_is_judged_by_its_own_claims(tmp_path):
    held = {"bits, K=5: analytic < beta": True, "bits, K=5: NPR with floor < analytic": False}
    held |= {"Frechet of values, K=5: sn-DDPM < npr-DDPM": True}
    for name in ("digits", "mnist"):
        (tmp_path / "tables" / name).mkdir(parents=True)
        (tmp_path / "tables" / name / "table.json").write_text(json.dumps({"claims": held}))
    (tmp_path / "tables" / "unfinished").mkdir()
    (tmp_path / "tables" / "unfinished" / "table.json").write_text(json.dumps({"cells": {}}))
    reverse_variance.conclude(tmp_path / "tables", tmp_path)
    analytic, learned = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("analytic-dpm", "sn-npr-dpm"))
    assert (analytic["verdict"], analytic["of"]) == ("reproduced", 2)
    assert (learned["verdict"], learned["held"], learned["of"]) == ("partly reproduced", 2, 4)
    with pytest.raises(ValueError, match="no finished table"):
        reverse_variance.conclude(tmp_path / "tables" / "unfinished", tmp_path)
