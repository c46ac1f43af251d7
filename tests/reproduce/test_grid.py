"""The grid experiment: measures against closed forms, claims that fail on bad numbers, and a small run that is resumed."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from trueward import records
from trueward.methods import method
from trueward.reproduce.grid import Experiment, Settings, run
from trueward.reproduce.grid_claims import METHODS, factor, interval, judge, values
from trueward.reproduce.grid_law import MODES, measures, truth

F64 = torch.float64
TINY = Settings(model_steps=20, critic_steps=10, generated=2000, samples=300, warm_up=50, steps=4)


def test_samples_of_the_law_measure_what_their_number_allows():
    found = measures(truth().sample(10_000, torch.Generator().manual_seed(0)))
    assert found["off-mode"] == pytest.approx(math.exp(-8.0), abs=6e-4)  # beyond four deviations in the plane
    assert found["mode KL"] == pytest.approx(24 / 2e4, abs=8e-4)
    assert found["TV"] == pytest.approx(0.049, abs=0.004)


def test_measures_are_known_for_known_defects():
    exact = MODES.repeat_interleave(40, 0)
    off = exact.clone()
    off[::4, 0] += 0.4
    assert measures(off)["off-mode"] == pytest.approx(0.25)
    far = exact.clone()
    far[:100] = 50.0
    assert measures(far)["off-mode"] == pytest.approx(0.1)
    one_mode = torch.zeros(1000, 2, dtype=F64)
    assert measures(one_mode)["mode KL"] == pytest.approx(math.log(25.0))
    assert measures(one_mode + 50.0)["TV"] == pytest.approx(1.0, abs=1e-6)
    half = torch.cat(
        [truth().sample(200_000, torch.Generator().manual_seed(1)), torch.full((200_000, 2), 9.0, dtype=F64)]
    )
    assert measures(half)["TV"] == pytest.approx(0.5, abs=0.01)


# --- claims -----------------------------------------------------------------------------------------------------------


def row(off, kl, tv, nfe=35.0, calls=0.0):
    return {"off-mode": off, "mode KL": kl, "TV": tv, "nfe": nfe, "critic calls": calls}


GOOD = {
    "data": row(0.0003, 0.001, 0.05),
    "base": row(0.15, 0.18, 0.28),
    "base, twice the steps": row(0.14, 0.17, 0.27, nfe=71.0),
    "base, four times the steps": row(0.14, 0.17, 0.27, nfe=143.0),
    "dg (1,0)": row(0.05, 0.07, 0.20, calls=15.0),
    "dg (2,0)": row(0.013, 0.05, 0.19, calls=15.0),
    "dg (1,1)": row(0.010, 0.04, 0.21, calls=29.0),
    "dg (2,2)": row(0.005, 0.08, 0.36, calls=29.0),
    "dg (-2,0)": row(0.22, 0.48, 0.41, calls=15.0),
    "diffrs 0.5": row(0.0004, 0.056, 0.169, 36.8, 21.0),
    "diffrs 0.75": row(0.0004, 0.027, 0.121, 37.7, 22.0),
    "diffrs 0.9": row(0.0004, 0.010, 0.081, 42.1, 26.0),
    "dg (2,0) + diffrs 0.9": row(0.0004, 0.010, 0.080, 42.1, 40.0),
    "shuffled dg (2,0)": row(0.15, 0.18, 0.28, calls=15.0),
    "shuffled diffrs 0.9": row(0.15, 0.18, 0.28, 35.2, 20.0),
}


def cells(**changed):
    """Three seeds that differ by some per cent; `changed` replaces measures of a cell, dashes and signs in its name spelled out."""
    found = {}
    for name, measured in GOOD.items():
        measured = {**measured, **changed.get(name, {})}
        found[name] = {
            str(seed): {
                k: v * (1.0 if k in ("nfe", "critic calls") else 1 + 0.02 * (seed - 1)) for k, v in measured.items()
            }
            for seed in range(3)
        }
    return found


@pytest.mark.parametrize("name", METHODS)
def test_numbers_like_the_published_ones_reproduce_the_methods(name):
    verdict = judge(cells(), name)
    assert verdict["verdict"] == "reproduced", verdict["claims"]
    assert verdict["seeds"] == 3
    assert verdict["table"]["base"]["TV"]["mean"] == pytest.approx(0.28)


@pytest.mark.parametrize(
    ("name", "changed", "claim"),
    [
        ("discriminator-guidance", {"dg (2,0)": {"off-mode": 0.05}}, "dg (2,0): off-mode smaller by at least 5 times"),
        ("discriminator-guidance", {"dg (2,0)": {"TV": 0.26}}, "dg (2,0): TV smaller by at least 15 %"),
        ("discriminator-guidance", {"dg (-2,0)": {"TV": 0.2}}, "the wrong sign, dg (-2,0), enlarges TV"),
        ("discriminator-guidance", {"dg (2,2)": {"TV": 0.2}}, "too much guidance hurts: TV of dg (2,2) above dg (1,1)"),
        (
            "discriminator-guidance",
            {"base, twice the steps": {"TV": 0.1}},
            "dg (2,0): smaller TV than the base, twice the steps",
        ),
        (
            "discriminator-guidance",
            {"shuffled dg (2,0)": {"off-mode": 0.05}},
            "a critic of shuffled labels leaves off-mode within 20 %",
        ),
        ("diffrs", {"diffrs 0.9": {"mode KL": 0.06}}, "diffrs 0.9: mode KL smaller by at least 4 times"),
        (
            "diffrs",
            {"diffrs 0.9": {"nfe": 70.5, "critic calls": 0.4}},
            "diffrs 0.9 spends fewer than 70 evaluations per sample",
        ),
        ("diffrs", {"diffrs 0.75": {"TV": 0.2}}, "TV falls with the percentile, 0.5 to 0.75"),
        (
            "diffrs",
            {"diffrs 0.9": {"critic calls": 60.0}},
            "diffrs 0.9 costs at most as much as the base, twice the steps, critic included",
        ),
        ("diffrs", {"shuffled diffrs 0.9": {"TV": 0.2}}, "a critic of shuffled labels leaves TV within 20 %"),
    ],
)
def test_a_claim_fails_on_numbers_that_break_it(name, changed, claim):
    verdict = judge(cells(**changed), name)
    assert [c for c, found in verdict["claims"].items() if not found["holds"]] == [claim]
    assert verdict["verdict"] == "partly reproduced"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_without_a_gain_is_not_reproduced(name):
    nothing = {k: {m: GOOD["base"][m] for m in ("off-mode", "mode KL", "TV")} for k in GOOD if k.startswith("d")}
    assert judge(cells(**nothing), name)["verdict"] == "not reproduced"


def test_a_gain_that_differs_in_sign_between_seeds_does_not_count():
    noisy = cells()
    for seed, share in (("0", 3.0), ("1", 0.001), ("2", 0.002)):
        noisy["diffrs 0.9"][seed]["off-mode"] = share * noisy["base"][seed]["off-mode"]
    claim = judge(noisy, "diffrs")["claims"]["diffrs 0.9: off-mode smaller by at least 5 times"]
    assert factor(noisy, "base", "diffrs 0.9", "off-mode")[0] > 5.0
    assert not claim["holds"]


def test_intervals_are_students():
    mean, low, high = interval(values({"a": {"0": {"v": 1.0}, "1": {"v": 2.0}, "2": {"v": 3.0}}}, "a", "v"))
    assert (mean, low, high) == pytest.approx((2.0, 2.0 - 4.302653 / math.sqrt(3), 2.0 + 4.302653 / math.sqrt(3)))


def test_no_sample_off_the_modes_is_half_a_sample():
    none = cells(**{"diffrs 0.9": {"off-mode": 0.0}})
    assert factor(none, "base", "diffrs 0.9", "off-mode")[0] == pytest.approx(0.15 / 0.5e-4, rel=0.01)


# --- the experiment ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    return folder, run(folder / "out", folder / "work", 2, TINY)


def test_a_run_leaves_measurements_pictures_and_verdicts(finished):
    folder, record = finished
    assert set(record["cells"]) == set(GOOD)
    assert all(set(seeds) == {"0", "1"} for seeds in record["cells"].values())
    assert record["cells"]["base, twice the steps"]["0"]["nfe"] == 15.0
    assert record["cells"]["base"]["0"]["critic calls"] == 0.0
    assert record["cells"]["dg (2,0)"]["0"]["critic calls"] == 3.0  # the last of four steps is outside the window
    assert record["cells"]["diffrs 0.9"]["0"]["critic calls"] >= 5.0  # the prior and four steps
    for picture in ("samples.png", "measures.png"):
        assert (folder / "out" / "grid" / picture).read_bytes().startswith(b"\x89PNG")
    for name in METHODS:
        assert "reproduced" in (method(name).last_reproduction(folder / "out") or "")


def test_a_run_goes_on_where_it_stopped(finished, monkeypatch):
    folder, record = finished
    path = folder / "out" / "grid" / "cells.json"
    stopped = copy.deepcopy(record)
    del stopped["cells"]["dg (1,1)"]["1"]
    stopped["cells"]["base"]["0"]["TV"] = 0.123  # measured already: must not be measured again
    records.write_json(path, stopped)
    drawn = []
    measure = Experiment.measure
    monkeypatch.setattr(Experiment, "measure", lambda self, samples: drawn.append(self.seed) or measure(self, samples))
    again = run(folder / "out", folder / "work", 2, TINY)
    assert drawn == [1]
    assert again["cells"]["base"]["0"]["TV"] == 0.123
    assert again["cells"]["dg (1,1)"] == record["cells"]["dg (1,1)"]


def test_other_settings_and_a_single_seed_are_refused(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match="other settings"):
        run(folder / "out", folder / "work", 2, Settings())
    with pytest.raises(ValueError, match="at least 2"):
        run(folder / "elsewhere", folder / "work", 1, TINY)
