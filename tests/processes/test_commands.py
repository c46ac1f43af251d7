"""Every command that shares work gives with 2 and 4 processes what it gives with one.

The commands run one after the other in the same launch; shares are uneven (22 samples in four shards, 110 rows in batches of
nine), and some have fewer pieces of work than there are processes.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trueward.data import load_data
from trueward.denoisers import denoiser
from trueward.loading import save_run
from trueward.networks import UNet
from trueward.schedules import EDM
from trueward.shards import ShardFolder

SCRIPT = Path(__file__).with_name("run_commands.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]

TINY = ["--width", "8", "--multipliers", "1,2", "--blocks", "1", "--attention", "4"]
COMMANDS: dict[str, list[str]] = {
    "run": ["train", "--data", "digits", "--limit", "130", "--held-out", "13", "--steps", "6", "--batch-size", "12", *TINY],
    "samples": ["sample", "MODEL", "--steps", "2", "-n", "22", "--shard-size", "6", "--batch-size", "4"],
    "few": ["sample", "MODEL", "--steps", "2", "-n", "3", "--shard-size", "2"],
    "table": ["fit-covariance", "MODEL", "--data", "digits", "-n", "10", "-b", "16"],
    "small-table": ["fit-covariance", "MODEL", "--data", "digits", "-n", "3"],
    "npr": ["fit-covariance", "MODEL", "--data", "digits", "--kind", "npr", "--steps", "5", "-b", "12", "-n", "2"],
    "scores.json": ["evaluate", "OUT/samples", "digits", "--limit", "110", "--batch-size", "9"],
    "report.html": ["compare", "MODEL", "--samplers", "ddim,edm", "--steps", "3,5", "-n", "24", "--seeds", "1", "--reference", "digits"],
    "bits.json": ["likelihood", "MODEL", "--data", "digits", "--limit", "7", "--steps", "4", "--variance", "beta"],
    "critic": ["fit-critic", "MODEL", "--data", "digits", "-n", "40", "--steps", "2", "--updates", "6", "-b", "12", "--width", "8", "--blocks", "1"],
}  # fmt: skip


def save_tiny(folder: Path) -> Path:
    """A small class-conditional U-Net with random weights everywhere (a fresh one answers zero)."""
    network = UNet(channels=1, size=8, width=8, multipliers=(1, 2), blocks=1, attention=(), num_classes=10)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    model = denoiser(network, EDM(), "edm", shape=(1, 8, 8), data_range=(-1.0, 1.0), num_classes=10)
    return save_run(folder, model, {"data": load_data("digits").to_config()})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``made(n)``: the folder of everything, made by n processes."""
    root = tmp_path_factory.mktemp("processes")
    model = save_tiny(root / "model")

    @functools.cache
    def by(processes: int) -> Path:
        out = root / str(processes)
        out.mkdir()
        words = [
            [word.replace("MODEL", str(model)).replace("OUT", str(out)) for word in command]
            + (["--out", str(out / name)])
            for name, command in COMMANDS.items()
        ]
        (out / "commands.json").write_text(json.dumps(words), encoding="utf-8")
        launch = [sys.executable] if processes == 1 else [*LAUNCH, str(processes)]
        done = subprocess.run(
            [*launch, str(SCRIPT), str(out / "commands.json")],
            capture_output=True, text=True, timeout=900, env=ENVIRONMENT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return out

    return by


pytestmark = pytest.mark.slow
several = pytest.mark.parametrize("processes", [2, 4])


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def largest_gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


@several
def test_training_has_the_losses_and_weights_of_one_process(made: Any, processes: int) -> None:
    one, other = (
        [json.loads(line) for line in (made(n) / "run" / "log.jsonl").read_text().splitlines()] for n in (1, processes)
    )
    assert read(made(processes) / "run" / "run.json")["record"]["processes"] == processes
    assert [entry["step"] for entry in one] == [entry["step"] for entry in other]
    for a, b in zip(one, other, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)  # float32 sums in another order
    assert other[-1]["validation_loss"] == pytest.approx(one[-1]["validation_loss"], rel=1e-4)
    a, b = (load_file(made(n) / "run" / "model.safetensors") for n in (1, processes))
    assert largest_gap(a, b) < 1e-3


@several
@pytest.mark.parametrize("name", ["samples", "few"])
def test_samples_are_those_of_one_process_bit_by_bit(made: Any, processes: int, name: str) -> None:
    one, other = ShardFolder(made(1) / name), ShardFolder(made(processes) / name)
    assert other.record["complete"]
    assert other.record["config"] == one.record["config"]
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@several
@pytest.mark.parametrize("name", ["table", "small-table"])
def test_the_table_of_variances_is_that_of_one_process(made: Any, processes: int, name: str) -> None:
    one, other = (load_file(made(n) / name / "covariance" / "analytic.safetensors") for n in (1, processes))
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-6, atol=1e-12)


@several
def test_a_learnt_head_is_that_of_one_process(made: Any, processes: int) -> None:
    a, b = (load_file(made(n) / "npr" / "covariance" / "npr" / "model.safetensors") for n in (1, processes))
    assert largest_gap(a, b) < 1e-4
    fresh = max(value.abs().max().item() for value in a.values())
    assert fresh > 1e-3


@several
def test_metrics_are_those_of_one_process(made: Any, processes: int) -> None:
    one, other = (read(made(n) / "scores.json") for n in (1, processes))
    assert other["processes"] == processes
    assert list(other["metrics"]) == list(one["metrics"])
    assert len(one["metrics"]) == 7  # five metrics, two of which are pairs
    for name, value in one["metrics"].items():
        assert other["metrics"][name]["value"] == pytest.approx(value["value"], rel=1e-9), name
        if value["standard_error"] is not None:
            assert other["metrics"][name]["standard_error"] == pytest.approx(value["standard_error"], rel=1e-9), name
    assert set(other["seconds"]) == set(one["seconds"])


@several
def test_a_comparison_has_the_cells_and_pictures_of_one_process(made: Any, processes: int) -> None:
    one, other = (read(made(n) / "report.json") for n in (1, processes))
    assert len(one["cells"]) == 4
    for a, b in zip(one["cells"], other["cells"], strict=True):
        assert (a["sampler"], a["budget"], a["nfe"], a["seed"]) == (b["sampler"], b["budget"], b["nfe"], b["seed"])
        for name, value in a["metrics"].items():
            assert b["metrics"][name] == pytest.approx(value, rel=1e-9)
    pages = [(made(n) / "report.html").read_text(encoding="utf-8") for n in (1, processes)]
    assert pages[1].count("data:image") == pages[0].count("data:image") > 0
    assert not list(made(processes).glob("*.cells*"))


@several
def test_bits_per_dimension_are_those_of_one_process(made: Any, processes: int) -> None:
    one, other = (read(made(n) / "bits.json")["bounds"][0] for n in (1, processes))
    numbers = {name: value for name, value in one.items() if isinstance(value, float) and math.isfinite(value)}
    assert len(numbers) >= 2
    for name, value in numbers.items():
        assert other[name] == pytest.approx(value, rel=1e-6), name


@several
def test_a_critic_is_that_of_one_process(made: Any, processes: int) -> None:
    a, b = (load_file(made(n) / "critic" / "critic" / "critic.safetensors") for n in (1, processes))
    assert largest_gap(a, b) < 1e-3


def test_a_failure_of_one_process_is_told_by_all(tmp_path: Path) -> None:
    """Nobody waits for the one that failed: the features of a batch with NaN are refused, in whichever process it falls."""
    import numpy as np

    x = np.zeros((20, 4), dtype=np.float32)
    x[17, 2] = np.nan
    np.save(tmp_path / "bad.npy", x)
    np.save(tmp_path / "good.npy", np.ones((20, 4), dtype=np.float32))
    words = ["evaluate", str(tmp_path / "bad.npy"), str(tmp_path / "good.npy"), "--batch-size", "3"]
    (tmp_path / "commands.json").write_text(json.dumps([words]), encoding="utf-8")
    done = subprocess.run(
        [*LAUNCH, "2", str(SCRIPT), str(tmp_path / "commands.json")],
        capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "NaN" in done.stderr
