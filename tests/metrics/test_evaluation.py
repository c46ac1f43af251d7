"""Estimates, intervals, class-wise metrics, and all metrics at once."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from trueward.data import Dataset, load_data
from trueward.metrics import (
    METRICS,
    Estimate,
    c2st,
    class_wise,
    density_coverage,
    evaluate,
    frechet_distance,
    interval,
    mmd,
    precision_recall,
    sliced_wasserstein,
)


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean_gap(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(x.mean() - y.mean())


def test_the_jackknife_error_of_a_mean_is_its_textbook_error():
    x, y = normal(12, 1, 1), normal(9, 1, 2)
    alone = [interval(mean_gap, x, torch.zeros(24, 1), groups=6), interval(mean_gap, torch.zeros(24, 1), y, groups=4)]
    assert all(found.standard_error > 0 for found in alone)
    # 2000 points in 1000 groups of two come close to s / sqrt(n) of each set
    x, y = normal(2000, 1, 1) * 3, normal(2000, 1, 2)
    found = interval(mean_gap, x, y, groups=1000)
    expected = math.sqrt(float(x.var() + y.var()) / 2000)
    assert found.standard_error == pytest.approx(expected, rel=0.06)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    hits = 0
    for seed in range(300):
        found = interval(mean_gap, normal(60, 1, seed) + 1, normal(60, 1, 9000 + seed), groups=10, confidence=0.9)
        hits += found.low <= 1.0 <= found.high
    # 270 expected, standard deviation 5.2; four of them have a false-alarm chance of 6e-5
    assert 249 <= hits <= 291


def test_an_estimate_is_a_number_with_a_normal_interval():
    found = Estimate(2.0, 0.5)
    assert float(found) == 2.0
    assert found.interval(0.95) == pytest.approx((2 - 0.97998, 2 + 0.97998), abs=1e-4)
    with pytest.raises(ValueError, match="no standard error"):
        Estimate(2.0).interval()
    with pytest.raises(ValueError, match="confidence"):
        found.interval(1.0)


def test_intervals_take_any_metric():
    x, y = normal(80, 2, 1), normal(80, 2, 2) + 1
    for metric in (frechet_distance, sliced_wasserstein, mmd, lambda a, b: precision_recall(a, b, groups=0).recall):
        found = interval(metric, x, y, groups=5)
        assert found.low < found.value < found.high
        assert json.dumps(found.to_dict())


def test_class_wise_compares_each_class_with_its_own():
    labels = torch.arange(300) % 3
    reference = normal(300, 2, 1) + labels[:, None] * 10.0
    samples = normal(300, 2, 2) + labels[:, None] * 10.0
    samples[labels == 2] += 5.0
    found = class_wise(frechet_distance, samples, labels, reference, labels)
    assert list(found) == [0, 1, 2]
    assert found[0] < 1
    assert found[1] < 1
    assert found[2] == pytest.approx(50, rel=0.15)
    assert list(class_wise(frechet_distance, samples, labels, reference[labels > 0], labels[labels > 0])) == [1, 2]


def test_class_wise_names_what_is_wrong():
    x, y = torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="no class in common"):
        class_wise(mmd, x, y, x, y + 5)
    with pytest.raises(ValueError, match="Class 0: samples must be at least 4"):
        class_wise(mmd, x, y, x, y)
    with pytest.raises(ValueError, match="reference_labels must have shape"):
        class_wise(mmd, x, y, x, y[:2])


def test_evaluate_gives_the_numbers_of_the_single_metrics_as_json():
    x, y = normal(120, 4, 1), normal(150, 4, 2) + 0.3
    report = evaluate(x, y, METRICS, options={"mmd": {"bandwidth": 2.0}, "c2st": {"classifier": "knn"}})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    found = {name: entry["value"] for name, entry in report["metrics"].items()}
    precision, recall = precision_recall(x, y)
    density, coverage = density_coverage(x, y)
    expected = {
        "frechet": frechet_distance(x, y),
        "precision": precision.value,
        "recall": recall.value,
        "density": density.value,
        "coverage": coverage.value,
        "mmd": mmd(x, y, 2.0).value,
        "sliced_wasserstein": sliced_wasserstein(x, y),
        "c2st": c2st(x, y, "knn").value,
    }
    assert set(found) == {*expected, "frechet_infinity"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
    assert all(entry["standard_error"] > 0 for entry in report["metrics"].values())
    assert (report["samples"], report["reference"], report["dimensions"]) == (120, 150, 4)


def test_evaluate_of_images_adds_the_class_accuracy():
    data, test = load_data("digits", limit=300), load_data("digits", split="test")
    report = evaluate(test, data, ["mmd"], "digits")
    assert report["features"] == "digits"
    assert report["metrics"]["class_accuracy"]["value"] > 0.97
    wrong = evaluate(test.x, data, ["mmd"], "digits", labels=(test.labels + 1) % 10)
    assert wrong["metrics"]["class_accuracy"]["value"] < 0.03
    assert wrong["metrics"]["mmd"] == report["metrics"]["mmd"]


def test_evaluate_prefers_held_out_data_to_noise_by_every_metric():
    data, test = load_data("digits", limit=297), load_data("digits", split="test")
    noise = torch.rand(297, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    good, bad = (evaluate(s, data, METRICS[0:1] + METRICS[2:], "digits")["metrics"] for s in (test.x, noise))
    for name in ("frechet", "mmd", "sliced_wasserstein", "c2st"):
        assert good[name]["value"] < bad[name]["value"], name
    for name in ("precision", "recall", "density", "coverage"):
        assert good[name]["value"] > bad[name]["value"], name


def test_small_sets_get_values_without_errors():
    report = evaluate(normal(12, 2, 1), normal(12, 2, 2), ["frechet", "precision_recall", "sliced_wasserstein"])
    assert all(math.isfinite(entry["value"]) for entry in report["metrics"].values())
    assert report["metrics"]["frechet"]["standard_error"] is None


def test_evaluate_reads_a_dataset_in_batches_and_arrays_alike():
    data = load_data("digits", limit=100)
    first = evaluate(data, data.subset(slice(0, 60)), ["frechet"], batch_size=9)
    again = evaluate(data.x.numpy(), np.asarray(data.x[:60]), "frechet")
    assert again["metrics"]["frechet"]["value"] == pytest.approx(first["metrics"]["frechet"]["value"], rel=1e-9)


X = normal(50, 2)
WRONG = [
    (lambda: evaluate(X, X, ["fid"]), "Unknown metric 'fid'"),
    (lambda: evaluate(X, X, ["mmd"], options={"c2st": {}}), "metric with options"),
    (lambda: evaluate(X, X, ["mmd"], options={"mmd": {"bandwith": 1}}), "Did you mean 'bandwidth'"),
    (lambda: evaluate(X, X[:, :1], ["mmd"]), "cannot be compared"),
    (lambda: evaluate(X[:1], X, ["frechet"]), "at least 2"),
    (lambda: evaluate(X, X / 0, ["frechet"]), "finite"),
    (lambda: evaluate(X, X, ["frechet"], "digits"), r"shape \(1, 8, 8\)"),
    (lambda: evaluate([[1.0], [2.0]], X, ["frechet"]), "got list"),
    (
        lambda: evaluate(Dataset(torch.zeros(5, 1, 8, 8)), Dataset(torch.zeros(5, 1, 9, 9)), ["mmd"]),
        "cannot be compared",
    ),
    (lambda: interval(mean_gap, X, X, groups=1), "groups"),
    (lambda: interval(mean_gap, X, X, groups=30), "too few for 30 groups"),
    (lambda: interval(mean_gap, X, X, confidence=95), "confidence"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_call_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
