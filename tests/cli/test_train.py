"""``trueward train``: recipes, designs, resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from trueward.data import load_data
from trueward.designs import design, image_network, resolutions, spread_of
from trueward.loading import build_model, load

from .conftest import Outcome

Run = Callable[..., Outcome]
TINY = [
    "--width",
    8,
    "--multipliers",
    "1,2",
    "--blocks",
    1,
    "--attention",
    "",
    "--batch-size",
    8,
    "--mixed-precision",
    "no",
]
QUICK = ["--sample-every", 0, "--validate-every", 0, "--checkpoint-every", 3]


def test_a_trained_run_can_be_sampled_and_compared(run: Run, tmp_path: Path) -> None:
    outcome = run("train", "--data", "digits", "--out", tmp_path / "r", "--steps", 4, *TINY, *QUICK)
    assert outcome.code == 0, outcome.err
    assert "Next: trueward sample" in outcome.out
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["training"]["steps"] == 4
    assert record["network"]["width"] == 8
    assert record["data"]["load"]["spec"] == "digits"
    assert run("sample", tmp_path / "r", "--steps", 2, "-n", 4, "--class", 3, "--out", tmp_path / "g.png").code == 0


def test_a_run_resumes_with_the_settings_it_had(run: Run, tmp_path: Path) -> None:
    lasting = ["--lr-schedule", "constant", "--seed", 5, *TINY, *QUICK]
    assert run("train", "--data", "digits", "--out", tmp_path / "a", "--steps", 3, *lasting).code == 0
    assert run("train", "--out", tmp_path / "a", "--resume", "--steps", 6).code == 0
    assert run("train", "--data", "digits", "--out", tmp_path / "b", "--steps", 6, *lasting).code == 0
    one, two = (load(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (record["training"]["seed"], record["training"]["steps"]) == (5, 6)


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue(tmp_path: Path, run: Run) -> None:
    words = ["train", "--data", "digits", "--out", tmp_path / "r", "--steps", 100000, *TINY, *QUICK]
    process = subprocess.Popen(
        [sys.executable, "-m", "trueward", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a shell's background job ignores the signal, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while not list((tmp_path / "r" / "checkpoints").glob("step-*3")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert f"Continue with: trueward train --out {tmp_path / 'r'} --resume" in said
    assert "Traceback" not in said
    assert load(tmp_path / "r") is not None


def test_a_folder_of_pictures_gets_a_design_that_fits(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
                tmp_path / "photos" / label / f"{i}.png"
            )
    words = [
        "--size",
        12,
        "--steps",
        2,
        "--batch-size",
        4,
        "--width",
        8,
        "--held-out",
        0,
        "--mixed-precision",
        "no",
        *QUICK,
    ]
    outcome = run("train", "--data", tmp_path / "photos", "--out", tmp_path / "r", *words)
    assert outcome.code == 0, outcome.err
    model = load(tmp_path / "r")
    assert (model.shape, model.num_classes) == ((3, 12, 12), 2)
    assert run("train", "--out", tmp_path / "r", "--resume").code == 0


def test_a_design_can_be_built_for_every_usual_size() -> None:
    for shape in ((1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 17, 23)):
        model = build_model(
            {
                "network": {**image_network(shape, width=8, blocks=1), "num_classes": None},
                "denoiser": {"prediction": "v", "schedule": {"schedule": "VPCosine"}, "shape": list(shape)},
            }
        )
        assert model(torch.zeros(1, *shape), 0.5).mean.shape == (1, *shape)
    assert resolutions(28, 3) == [28, 14, 7]


def test_vectors_are_learnt_by_a_perceptron(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    words = [
        "--steps",
        2,
        "--batch-size",
        4,
        "--width",
        16,
        "--blocks",
        1,
        "--held-out",
        0,
        "--mixed-precision",
        "no",
        *QUICK,
    ]
    assert run("train", "--data", tmp_path / "x.npz", "--out", tmp_path / "r", *words).code == 0
    network = json.loads((tmp_path / "r" / "run.json").read_text())["network"]
    assert (network["network"], network["dim"], network["width"], network["depth"]) == ("MLP", 3, 16, 1)
    assert run("sample", tmp_path / "r", "-n", 5, "--steps", 3, "--out", tmp_path / "s.npz").code == 0
    refused = run("train", "--data", tmp_path / "x.npz", "--out", tmp_path / "q", "--attention", "4")
    assert (refused.code, "belongs to networks for images" in refused.err) == (2, True)
    assert not (tmp_path / "q").exists()


def test_the_spread_of_the_data_is_measured() -> None:
    data = load_data("digits")
    assert spread_of(data) == pytest.approx(float(data.x.std()), rel=1e-2)
    assert design(data)["denoiser"]["sigma_data"] == spread_of(data)
    assert design(data)["network"]["num_classes"] == 10
    assert design(data, conditional=False)["network"]["num_classes"] is None


def test_data_without_labels_cannot_be_conditional() -> None:
    with pytest.raises(ValueError, match="no labels"):
        design(load_data("digits", labels=False), conditional=True)
