"""Several processes give the curve of one, and a killed run continues as if nothing had happened."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .conftest import FAST

SCRIPT = Path(__file__).with_name("run_training.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _start(out, settings, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(out), json.dumps(settings), *arguments],
        env={**ENVIRONMENT, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process):
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error


def _losses(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_gloo_processes_have_the_loss_curve_of_one(tmp_path):
    settings = {**FAST, "steps": 12, "validate_every": 6, "accumulation": 2}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if torch.accelerator.is_available():  # elsewhere the trainer finds out by itself that the processes meet on the CPU
        together["ACCELERATE_USE_CPU"] = "true"
    running = [_start(tmp_path / "two", settings, RANK=str(r), LOCAL_RANK=str(r), **together) for r in range(2)]
    for process in running:
        _finish(process)
    _finish(_start(tmp_path / "one", settings))
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["record"]["processes"] == 2
    assert len(one) == len(two) == 12
    for a, b in zip(one, two, strict=True):
        assert (
            abs(a["loss"] - b["loss"]) < 1e-4 * a["loss"]
        )  # float32 sums in another order, through 12 updates of Adam
    assert abs(one[-1]["validation_loss"] - two[-1]["validation_loss"]) < 1e-4 * one[-1]["validation_loss"]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-3


@pytest.mark.slow
def test_kill_9_then_resume_ends_with_the_weights_of_an_unbroken_run(tmp_path):
    settings = {**FAST, "steps": 60, "checkpoint_every": 7, "keep_checkpoints": 2}
    _finish(_start(tmp_path / "whole", settings))
    process = _start(tmp_path / "killed", settings)
    deadline = time.monotonic() + 300
    log = tmp_path / "killed" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 20):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 20 <= len(log.read_text().splitlines()) < 60
    _finish(_start(tmp_path / "killed", settings, "resume"))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert max((a[k] - b[k]).abs().max().item() for k in a) <= 1e-6
    numbers = [(entry["step"], entry["loss"]) for entry in _losses(tmp_path / "killed")]
    assert numbers == [(entry["step"], entry["loss"]) for entry in _losses(tmp_path / "whole")]
    assert not list((tmp_path / "killed").rglob("*.part"))


def test_this_machine_can_run_gloo():
    assert torch.distributed.is_gloo_available()
