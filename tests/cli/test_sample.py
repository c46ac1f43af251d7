"""``trueward sample``: pictures, arrays, folders; identity over processes and interruption."""

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
from PIL import Image

from trueward.shards import ShardFolder

from .conftest import Outcome

Run = Callable[..., Outcome]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def test_a_grid_is_one_picture_with_its_record_beside_it(run: Run, model: Path, tmp_path: Path) -> None:
    outcome = run("sample", model, "--steps", 3, "-n", 6, "--columns", 3, "--out", tmp_path / "g.png")
    assert outcome.code == 0, outcome.err
    assert "6 samples, 3 network evaluations each" in outcome.out
    picture = Image.open(tmp_path / "g.png")
    assert picture.size == ((3 * 9 - 1) * 4, (2 * 9 - 1) * 4), (
        "three 8x8 images in a row, gaps of one, four times enlarged"
    )
    record = json.loads((tmp_path / "g.json").read_text())
    assert (record["n"], record["nfe"], record["config"]["seed"]) == (6, 3, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.json", "g.png"]


def test_an_array_holds_bytes_channels_last_and_the_labels_asked_for(run: Run, model: Path, tmp_path: Path) -> None:
    run("sample", model, "--steps", 2, "-n", 7, "--class", "3,5", "--guidance", 1.5, "--out", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as stored:
        assert (stored["arr_0"].shape, stored["arr_0"].dtype) == ((7, 8, 8, 1), np.uint8)
        assert stored["labels"].tolist() == [3, 5, 3, 5, 3, 5, 3]


def test_folder_array_and_pictures_hold_the_same_samples(run: Run, model: Path, tmp_path: Path) -> None:
    call = ["sample", model, "--steps", 2, "-n", 10, "--seed", 7]
    run(*call, "--out", tmp_path / "a.npz", "--batch-size", 10)
    assert run(*call, "--out", tmp_path / "s", "--shard-size", 4, "--batch-size", 3, "--png").code == 0
    with np.load(tmp_path / "a.npz") as stored:
        array = stored["arr_0"].astype(int)
    shards = torch.cat([shard["samples"] for shard in ShardFolder(tmp_path / "s")]).permute(0, 2, 3, 1).numpy()
    pictures = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "s" / "images").iterdir())])
    assert np.abs(array - shards).max() <= 1, "batches of another size may round the last grey level differently"
    assert np.array_equal(pictures, shards[..., 0])


def test_options_reach_the_sampler(run: Run, model: Path, tmp_path: Path) -> None:
    run(
        "sample",
        model,
        "--nfe",
        9,
        "--sampler",
        "edm:grid=log-snr",
        "--option",
        "churn=2",
        "-n",
        2,
        "--out",
        tmp_path / "g.png",
    )
    record = json.loads((tmp_path / "g.json").read_text())
    assert record["sampler"] == "edm:grid=log-snr,churn=2"
    assert "churn=2" in record["config"]["sampler"]
    assert "UniformLogSNR" in record["config"]["sampler"]
    assert record["nfe"] == 9


def test_running_a_finished_folder_again_changes_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    call = ["sample", model, "--steps", 2, "-n", 9, "--shard-size", 4, "--out", tmp_path / "s"]
    first = run(*call)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "s").iterdir()}
    assert run(*call).out == first.out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "s").iterdir()} == before


@pytest.mark.slow
def test_two_launched_processes_draw_what_one_draws(run: Run, model: Path, tmp_path: Path) -> None:
    words = ["sample", str(model), "--steps", "2", "-n", "30", "--shard-size", "6", "--batch-size", "4"]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        "-m",
        "trueward.cli",
    ]
    done = subprocess.run(
        [*launch, *words, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert ShardFolder(tmp_path / "two").record["processes"] == 2
    assert run(*words, "--out", tmp_path / "one").code == 0
    for one, two in zip(ShardFolder(tmp_path / "one"), ShardFolder(tmp_path / "two"), strict=True):
        assert torch.equal(one["samples"], two["samples"])
        assert torch.equal(one["indices"], two["indices"])
    assert ShardFolder(tmp_path / "two").record["complete"]


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue_and_continuing_gives_the_same(run: Run, model: Path, tmp_path: Path) -> None:
    words = [
        "sample",
        str(model),
        "--steps",
        "20",
        "-n",
        "4000",
        "--shard-size",
        "50",
        "--batch-size",
        "50",
        "--dtype",
        "float32",
    ]
    folder = tmp_path / "s"
    process = subprocess.Popen(
        [sys.executable, "-m", "trueward.cli", *words, "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # a shell's background job ignores the signal, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while not list(folder.glob("shard-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "run the same command again to continue" in said
    assert "Traceback" not in said
    assert not list(folder.glob("*.part"))
    finished = len(list(folder.glob("shard-*.safetensors")))
    assert 0 < finished < 80, "it was to be stopped in the middle"
    words[words.index("4000")] = str(50 * (finished + 1))
    assert run(*words, "--out", folder).code == 2, "the folder was started for more"
    record = json.loads((folder / "sampling.json").read_text())
    (folder / "sampling.json").write_text(json.dumps({**record, "n": 50}))
    assert run(*words, "--out", folder).code == 0
    samples, _ = ShardFolder(folder).load()
    assert run(*words, "--out", tmp_path / "unbroken").code == 0
    assert torch.equal(samples, ShardFolder(tmp_path / "unbroken").load()[0])
