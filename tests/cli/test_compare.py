"""``trueward compare``: equal cost, equal noise, an interruption that loses nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from trueward.data import load_data
from trueward.denoisers import Denoiser, Posterior
from trueward.loading import load
from trueward.reports import Judge, compare, reference_of
from trueward.schedules import VPLinear
from trueward.truth import Gaussian, TruthDenoiser

from .conftest import Outcome

Run = Callable[..., Outcome]


def test_the_page_csv_and_json_are_written_and_nothing_else(run: Run, model: Path, tmp_path: Path) -> None:
    words = [
        "--samplers",
        "ddim,edm,dpm-solver++:order=3,grid=karras",
        "--steps",
        "3,4",
        "-n",
        40,
        "--seeds",
        2,
        "--class",
        "all",
    ]
    outcome = run("compare", model, *words, "--out", tmp_path / "r.html")
    assert outcome.code == 0, outcome.err
    assert "Report:" in outcome.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.csv", "r.html", "r.json"]
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sampler"], row["budget"], row["nfe"]) for row in rows] == [
        ("ddim", "3", "3"),
        ("ddim", "4", "4"),
        ("edm", "3", "3"),
        ("edm", "4", "3"),
        ("dpm-solver++:order=3,grid=karras", "3", "3"),
        ("dpm-solver++:order=3,grid=karras", "4", "4"),
    ]
    record = json.loads((tmp_path / "r.json").read_text())
    assert len(record["cells"]) == 12
    assert record["about"]["reference"] == "digits, train split, 1500 samples"
    assert record["about"]["seeds"] == [0, 1]
    assert record["floor"].keys() == {"frechet", "precision", "recall"}
    page = (tmp_path / "r.html").read_text()
    assert page.count("<img") == 7, "six cells and the data"
    assert "3 <small>of 4</small>" in page


class Counting(Denoiser):
    """Counts the calls of another model."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.schedule, shape=inner.shape, data_range=inner.data_range)
        self.inner, self.calls = inner, 0

    def forward(self, x_t: torch.Tensor, t: float | torch.Tensor, **condition: object) -> Posterior:
        self.calls += 1
        return self.inner(x_t, t, **condition)


def gaussian() -> tuple[Counting, torch.Tensor]:
    truth = Gaussian([1.0, -2.0], [0.5, 0.2])
    return Counting(TruthDenoiser(truth, VPLinear())), truth.sample(2000, torch.Generator().manual_seed(0)).float()


def test_samples_of_the_true_model_reach_the_floor() -> None:
    model, data = gaussian()
    result = compare(
        model, "dpm-solver++", [30], data[:1000], n=1000, seeds=[0, 1], held_out=data[1000:], metrics=["frechet"]
    )
    (row,) = result.rows
    # of two sets of 1000 points in the plane the distance is below 0.03 but once in a million times
    assert row.metrics["frechet"] < 0.03
    assert result.floor["frechet"] < 0.03


def test_an_interrupted_comparison_draws_only_what_is_missing(tmp_path: Path) -> None:
    model, data = gaussian()
    arguments = {
        "n": 20,
        "seeds": [0, 1],
        "batch_size": 20,
        "show": 4,
        "memory": tmp_path / "m",
        "metrics": ["frechet"],
    }

    class Stop(Exception):
        pass

    def stop(step: object) -> None:
        if step.sampler == "edm":  # type: ignore[attr-defined]
            raise Stop

    with pytest.raises(Stop):
        compare(model, "ddim,edm", [5], data, callback=stop, **arguments)  # type: ignore[arg-type]
    model.calls = 0
    resumed = compare(model, "ddim,edm", [5], data, **arguments)  # type: ignore[arg-type]
    assert model.calls == 5 + 2 * 5, "ddim: the pictures of seed 0 only; edm: both seeds"
    unbroken = compare(model, "ddim,edm", [5], data, **{**arguments, "memory": None})  # type: ignore[arg-type]
    assert [c.metrics for c in resumed.cells] == [c.metrics for c in unbroken.cells]
    assert all(np.allclose(resumed.pictures[k], unbroken.pictures[k], atol=1e-6) for k in unbroken.pictures)


def test_what_is_remembered_of_another_model_or_reference_is_not_used(tmp_path: Path) -> None:
    model, data = gaussian()
    for reference, n in ((data, 20), (data + 1, 20), (data, 21)):
        model.calls = 0
        compare(
            model, "ddim", [5], reference, n=n, seeds=[0], memory=tmp_path / "m", metrics=["frechet"], batch_size=50
        )
        assert model.calls == 5


def test_a_sampler_that_diverges_does_not_end_the_comparison(tmp_path: Path) -> None:
    class Exploding(Counting):
        """NaN at the times between the ends, which DDIM visits in three steps and Heun in two does not."""

        def forward(self, x_t: torch.Tensor, t: float | torch.Tensor, **condition: object) -> Posterior:
            answer = self.inner(x_t, t)
            middle = self.schedule.t_min < float(t) < self.schedule.t_max
            return answer.replace(mean=answer.mean * float("nan")) if middle else answer

    model, data = gaussian()
    result = compare(Exploding(model.inner), "ddim,edm", [3], data, n=10, seeds=[0], metrics=["frechet"], batch_size=10)
    found = {cell.sampler: cell.metrics["frechet"] for cell in result.cells}
    assert np.isnan(found["ddim"])
    assert np.isfinite(found["edm"])
    result.write(tmp_path / "r.html")
    assert "no finite samples" in (tmp_path / "r.html").read_text()


def test_every_picture_starts_from_the_same_noise() -> None:
    model, data = gaussian()
    result = compare(model, "dpm-solver++,edm", [60], data, n=8, seeds=[0], metrics=["frechet"])
    a, b = (result.pictures[name, 60] for name in ("dpm-solver++", "edm"))
    # with many steps both follow the same path; where they end differs by the noise left at t_min
    assert np.abs(a - b).max() < 0.06
    assert np.abs(a - np.roll(b, 1, axis=0)).max() > 0.5


def test_judge_agrees_with_the_metrics_it_is_made_of() -> None:
    from trueward.metrics import frechet_distance, precision_recall

    data = load_data("digits")
    samples = load_data("digits", split="test").x
    judge = Judge(data, ["frechet", "precision_recall"], "digits")
    found = judge(samples)
    assert found["frechet"] == pytest.approx(frechet_distance(samples, data, "digits"), rel=1e-9)
    assert judge(data.x)["frechet"] == pytest.approx(0.0, abs=1e-6)
    rows = torch.linspace(0, 1499, 297, dtype=torch.float64).long()
    wanted = precision_recall(samples, data.x[rows], features="digits", data_range=(-1.0, 1.0))
    assert found["precision"] == pytest.approx(wanted.precision.value)
    assert found["recall"] == pytest.approx(wanted.recall.value)


def test_the_reference_is_what_the_model_was_trained_on(model: Path) -> None:
    reference = reference_of(load(model))
    assert (reference.train.name, len(reference.train), reference.features) == ("digits", 1500, "digits")
    assert reference.held_out is not None
    assert len(reference.held_out) == 297
    with pytest.raises(ValueError, match="does not say which data"):
        reference_of(TruthDenoiser(Gaussian([0.0], 1.0), VPLinear()))
