"""``trueward evaluate``, ``certify`` and ``methods``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trueward.data import load_data
from trueward.data.images import to_images

from .conftest import Outcome

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The held-out digits as an array and as a folder of pictures."""
    folder = tmp_path_factory.mktemp("real")
    images = to_images(load_data("digits", split="test").x)
    np.savez(folder / "digits.npz", arr_0=images)
    (folder / "pictures").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[:, :, 0]).save(folder / "pictures" / f"{i:03d}.png")
    return folder


def test_an_array_and_a_folder_of_the_same_pictures_score_the_same(run: Run, real: Path, tmp_path: Path) -> None:
    results = []
    for name in ("digits.npz", "pictures"):
        outcome = run(
            "evaluate", real / name, "digits", "--metrics", "frechet,precision_recall", "--out", tmp_path / "e.json"
        )
        assert outcome.code == 0, outcome.err
        assert "frechet" in outcome.out
        results.append(json.loads((tmp_path / "e.json").read_text()))
    a, b = (result["metrics"]["frechet"]["value"] for result in results)
    assert a == pytest.approx(b, rel=1e-6)
    assert results[0]["features"] == "digits"
    assert results[0]["samples"] == 297
    low, high = results[0]["metrics"]["frechet"]["interval"]
    assert low < a < high


def test_real_digits_score_better_than_those_of_an_untrained_model(
    run: Run, real: Path, model: Path, tmp_path: Path
) -> None:
    run("sample", model, "--steps", 2, "-n", 100, "--out", tmp_path / "s")
    values = []
    for samples in (real / "digits.npz", tmp_path / "s"):
        outcome = run("evaluate", samples, "digits", "--metrics", "frechet", "--json")
        values.append(json.loads(outcome.out)["metrics"]["frechet"]["value"])
    assert values[0] < 0.2 * values[1]


def test_samples_of_another_range_are_compared_in_the_range_of_the_reference(
    run: Run, real: Path, tmp_path: Path
) -> None:
    x = load_data("digits", split="test").x
    np.savez(tmp_path / "floats.npz", x=x.numpy())
    scores = [
        json.loads(run("evaluate", path, "digits", "--metrics", "frechet", "--features", "pixels", "--json").out)
        for path in (real / "digits.npz", tmp_path / "floats.npz")
    ]
    a, b = (score["metrics"]["frechet"]["value"] for score in scores)
    assert a == pytest.approx(b, rel=0.02), "the array was rounded to 256 grey levels"


@pytest.mark.slow
def test_certify_gives_a_verdict_as_exit_code_and_a_certificate(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "def euler(denoiser, schedule, x_T, steps):\n"
        "    from trueward.samplers import DDIM\n"
        "    return DDIM(steps=steps, grid='log-snr', clip=False).sample(denoiser, x_T).x\n"
    )
    monkeypatch.chdir(tmp_path)
    honest = run("certify", "mine:euler", "--claims", 1, "--out", tmp_path / "c.json")
    assert honest.code == 0, honest.out + honest.err
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["passed"]
    assert "versions" in record
    assert run("certify", "mine:euler", "--claims", 3).code == 1


def test_methods_lists_twenty_and_cites_them(run: Run) -> None:
    entries = json.loads(run("methods", "--json").out)
    assert len(entries) == 20
    assert {"name", "title", "authors", "venue", "year", "room", "status", "reproduction"} <= entries[0].keys()
    table = run("methods").out
    assert all(entry["name"].split("-")[0] in table for entry in entries)
    assert run("methods", "--bibtex").out.count("\n@") + 1 >= 20
    one = run("methods", "dpm-solver", "--bibtex").out
    assert one.startswith("@")
    assert "lu2022dpmsolver" in one
