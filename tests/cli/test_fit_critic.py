"""``fit-critic``, ``sample --refine`` and ``compare`` with corrections, from end to end on small models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from trueward.denoisers import denoiser
from trueward.loading import save_run
from trueward.networks import MLP
from trueward.schedules import EDM
from trueward.shards import ShardFolder

from .conftest import Outcome

Run = Callable[..., Outcome]
FIT = ("--steps", 4, "-n", 80, "--updates", 30, "--batch-size", 32, "--width", 8)
WARM_UP = ("--option", "warm_up=40")


def vector_model(folder: Path) -> Path:
    """A run of points of the plane, quick to sample."""
    torch.manual_seed(0)
    network = MLP(2, width=16, depth=1)
    torch.nn.init.normal_(network.out[-1].weight, std=0.3)
    np.save(folder / "points.npy", np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32))
    model = denoiser(network, EDM(), "edm", shape=(2,), sigma_data=1.0)
    data = {"spec": str(folder / "points.npy"), "split": "train", "data_range": "auto"}
    return save_run(folder / "run", model, {"data": {"load": data}})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of points with its critic."""
    folder = vector_model(tmp_path_factory.mktemp("fitted"))
    command = [sys.executable, "-m", "trueward.cli", "fit-critic", str(folder), *map(str, FIT)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert "Trained for 30 updates" in done.stdout
    return folder


def test_a_critic_is_fitted_beside_the_model_with_a_report(fitted: Path) -> None:
    facts = json.loads((fitted / "critic/critic.json").read_text())
    assert facts["sampler"] == "edm (4 steps)"
    assert facts["model_name"] == str(fitted)
    assert ShardFolder(fitted / "critic/generated").record["complete"]
    page = (fitted / "critic/report.html").read_text()
    assert page.count('<svg class="chart"') == 2 + 4 + 4 + 1
    for text in ("Log ratios of real and generated samples", "Are its probabilities honest?", "log 2"):
        assert text in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_critic_learns_from_other_samples_than_those_drawn_later(run: Run, fitted: Path, tmp_path: Path) -> None:
    drawn = run(
        "sample", fitted, "--sampler", "edm", "--steps", 4, "-n", 80, "--dtype", "float32", "--out", tmp_path / "s"
    )
    assert drawn.code == 0, drawn.err
    x, learnt = (ShardFolder(folder).load()[0] for folder in (tmp_path / "s", fitted / "critic/generated"))
    assert x.shape == learnt.shape == (80, 2)
    assert torch.cdist(x.double(), learnt.double()).diagonal().min() > 1e-4  # both under the default seed


def test_an_image_model_gets_a_conditional_critic_on_its_features(run: Run, model: Path, tmp_path: Path) -> None:
    out = run("fit-critic", model, "--out", tmp_path, "--features", "--conditional", *FIT, "--sampler", "ddim")
    assert out.code == 0, out.err
    facts = json.loads((tmp_path / "critic/critic.json").read_text())
    assert f"Next: trueward sample {model} --critic {tmp_path} --refine diffrs --class all --out grid.png" in out.out
    assert (facts["kind"], facts["num_classes"]) == ("trueward-feature-critic", 10)
    assert facts["generated"]["labels"] == list(range(10))
    drawn = run(
        "sample", model, "--critic", tmp_path, "--refine", "dg+diffrs", "--class", "all", "-n", 12, *WARM_UP,
        "--out", tmp_path / "g.npz",
    )  # fmt: skip
    assert drawn.code == 0, drawn.err
    assert drawn.err == ""  # the critic's own sampler and steps: nothing to note
    record = json.loads((tmp_path / "g.json").read_text())
    assert record["sampler"] == "ddim+dg+diffrs:warm_up=40"
    assert record["steps"] == 4
    assert record["refinement"]["critic_gradients"] > 0
    with np.load(tmp_path / "g.npz") as archive:
        assert archive["labels"].tolist() == [k % 10 for k in range(12)]
    refused = run("sample", model, "--critic", tmp_path, "--refine", "dg", "-n", 2, "--out", tmp_path / "h.png")
    assert refused.code == 2
    assert "judges a sample as one of its class: say which to draw, --class all or numbers in 0 ... 9." in refused.err


def test_what_is_said_to_come_next_works(run: Run, plain: Path, tmp_path: Path) -> None:
    out = run("fit-critic", plain, "--out", tmp_path, "--sampler", "dpm-solver++", *FIT)
    assert out.code == 0, out.err
    words = out.out.split("Next: trueward ")[1].split()
    assert words[words.index("--refine") + 1] == "dg"  # rejection cannot step a multistep sampler
    drawn = run(*words[:-1], tmp_path / "grid.png")
    assert drawn.code == 0, drawn.err


def test_samples_that_are_there_can_be_taken(run: Run, plain: Path, tmp_path: Path) -> None:
    sampler = "ddim:eta=0.5"
    assert run("sample", plain, "--sampler", sampler, "--steps", 2, "-n", 60, "--out", tmp_path / "s").code == 0
    out = run("fit-critic", plain, "--out", tmp_path, "--generated", tmp_path / "s", *FIT[4:])
    assert out.code == 0, out.err
    assert "60 generated samples for 1500 real ones" in out.err
    facts = json.loads((tmp_path / "critic/critic.json").read_text())
    assert facts["generated"] == {"from": str(tmp_path / "s"), "n": 60}
    assert not (tmp_path / "critic/generated").exists()
    # their record says what made them, so that is what will be corrected
    assert (facts["sampler"], facts["sampler_spec"], facts["steps"]) == (f"{sampler} (2 steps)", sampler, 2)
    page = (tmp_path / "critic/report.html").read_text()
    assert f"{sampler} (2 steps)" in page
    assert "another model" not in out.err
    drawn = run("sample", plain, "--critic", tmp_path, "--refine", "dg", "-n", 4, "--out", tmp_path / "g.png")
    assert (drawn.code, drawn.err) == (0, "")
    assert json.loads((tmp_path / "g.json").read_text())["sampler"] == "ddim+dg:eta=0.5"
    record = json.loads((tmp_path / "s/sampling.json").read_text())
    record["config"]["model"] = "0123456789abcdef"
    record["sampler"] = "edm+dg:weight=2"
    (tmp_path / "s/sampling.json").write_text(json.dumps(record))
    other = run("fit-critic", plain, "--out", tmp_path / "o", "--generated", tmp_path / "s", *FIT[4:])
    assert "were drawn from another model (other weights or covariance)" in other.err
    facts = json.loads((tmp_path / "o/critic/critic.json").read_text())
    assert (facts["sampler"], facts["sampler_spec"]) == ("edm+dg (2 steps)", "edm")


def test_refined_shards_are_those_of_one_file_and_are_told_at_their_cost(
    run: Run, fitted: Path, tmp_path: Path
) -> None:
    common = ("sample", fitted, "--refine", "diffrs", "--percentile", 0.9, "-n", 50, *WARM_UP)
    one = run(*common, "--out", tmp_path / "one.npz", "--batch-size", 7)
    many = run(*common, "--out", tmp_path / "many", "--shard-size", 20, "--report", tmp_path / "r.html")
    assert (one.code, many.code) == (0, 0), one.err + many.err
    with np.load(tmp_path / "one.npz") as archive:
        assert np.allclose(ShardFolder(tmp_path / "many").load()[0].numpy(), archive["arr_0"], atol=1e-5)
    assert "--shard-size 4096 or more keeps the batch full" in many.err  # 64 slots, 20 samples in a shard
    assert "shard" not in one.err
    record = json.loads((tmp_path / "one.json").read_text())
    sharded = ShardFolder(tmp_path / "many").record
    assert sharded["nfe"] == pytest.approx(record["nfe"])
    assert sharded["refinement"] == pytest.approx(record["refinement"])
    kept = torch.cat([shard["nfe"] for shard in ShardFolder(tmp_path / "many")])
    assert kept.tolist() == record["nfe_kept"]
    assert record["nfe"] >= 7
    assert record["nfe"] == pytest.approx(kept.double().mean().item())  # nothing was restarted
    assert f"{record['nfe']:.5g} network evaluations each" in one.out
    page = (tmp_path / "r.html").read_text()
    for text in ("Acceptance", "Moves up", "Work per sample", "What the critic says of the results"):
        assert text in page
    assert (
        len(list((fitted / "critic").glob("rejection-*.safetensors"))) == 1
    )  # one warm-up for both, and every percentile
    again = run(*common[:5], 0.5, *common[6:], "--out", tmp_path / "half.npz")
    assert again.code == 0
    assert len(list((fitted / "critic").glob("rejection-*.safetensors"))) == 1


def test_a_folder_of_other_refinement_is_refused(run: Run, fitted: Path, tmp_path: Path) -> None:
    assert run("sample", fitted, "--refine", "dg", "-n", 4, "--out", tmp_path / "s").code == 0
    again = run("sample", fitted, "--refine", "dg", "--weight", 1, "-n", 4, "--out", tmp_path / "s")
    assert again.code == 0  # the default, said
    other = run("sample", fitted, "--refine", "dg", "--weight", 2, "-n", 4, "--out", tmp_path / "s")
    assert other.code == 2
    assert "another configuration (sampler was" in other.err


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_job_is_finished_with_the_same_samples(fitted: Path, tmp_path: Path, processes: int) -> None:
    words = ["-m", "trueward.cli", "sample", str(fitted), "--refine", "diffrs", *WARM_UP, "-n", "1000", "--shard-size"]
    words += ["20", "--batch-size", "8", "--out"]

    def start(out: Path, rank: int = 0, world: int = 1) -> subprocess.Popen[str]:
        # sampling needs no group, so these are what a launcher would start
        launched = {"RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, *words, str(out)], env={**os.environ, **launched}, stderr=subprocess.PIPE, text=True
        )

    broken = tmp_path / "broken"
    jobs = [start(broken, rank, processes) for rank in range(processes)]
    deadline = time.monotonic() + 240
    while len(list(broken.glob("shard-*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    for job in jobs:
        job.send_signal(signal.SIGKILL)
        job.communicate()
    assert 3 <= len(list(broken.glob("shard-*.safetensors"))) < 50, "the job was not killed in its middle"
    for job in [*(start(broken, rank, processes) for rank in range(processes)), start(tmp_path / "whole")]:
        _, said = job.communicate(timeout=300)
        assert job.returncode == 0, said
    for mine, theirs in zip(ShardFolder(broken), ShardFolder(tmp_path / "whole"), strict=True):
        assert torch.equal(mine["indices"], theirs["indices"])
        assert torch.equal(mine["samples"], theirs["samples"])
        assert torch.equal(mine["nfe"], theirs["nfe"])
    record = ShardFolder(broken).record
    assert record["complete"]
    assert record["refinement"] == ShardFolder(tmp_path / "whole").record["refinement"]


@pytest.mark.slow
def test_two_processes_fit_the_critic_of_one(fitted: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(fitted, run_folder, ignore=shutil.ignore_patterns("critic"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "trueward.cli", "fit-critic", str(run_folder), *map(str, FIT), "--sample-batch", "16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Trained for 30 updates") == 1  # one of them speaks
    one, two = (json.loads((f / "critic/critic.json").read_text())["training"] for f in (fitted, run_folder))
    for a, b in zip(one["history"], two["history"], strict=True):
        assert b == pytest.approx(a, abs=1e-4)
    from trueward.loading import read_weights

    weights = [read_weights(f / "critic/critic.safetensors") for f in (fitted, run_folder)]
    for name, value in weights[0].items():
        assert torch.allclose(weights[1][name], value, atol=1e-4)


def test_compare_shows_the_honest_cost_beside_the_critics(run: Run, fitted: Path, tmp_path: Path) -> None:
    samplers = "edm,edm+dg:weight=0.5,diffrs:warm_up=40,edm+dg+diffrs:warm_up=40,ddpm+diffrs:warm_up=40"
    out = run(
        "compare", fitted, "--samplers", samplers, "--steps", 7, "--seeds", 1, "-n", 60, "--features", "pixels",
        "--metrics", "frechet", "--out", tmp_path / "c.html",
    )  # fmt: skip
    assert out.code == 0, out.err
    assert out.err.count("its ratio is an approximation") == 1  # ddpm, once
    assert "for ddpm (7 steps)" in out.err
    rows = {row["sampler"]: row for row in json.loads((tmp_path / "c.json").read_text())["rows"]}
    assert (rows["edm"]["nfe"], rows["edm"]["critic"]) == (7, 0)
    guided = rows["edm+dg:weight=0.5"]
    assert guided["nfe"] == 7
    assert 0 < guided["critic"] <= 7
    assert rows["edm+diffrs:warm_up=40"]["nfe"] > 7  # abandoned work is counted
    assert rows["edm+dg+diffrs:warm_up=40"]["critic"] > guided["critic"]
    assert "of the critic" in out.out
    assert "Evaluations are all that were made" in (tmp_path / "c.html").read_text()
    assert (tmp_path / "c.csv").read_text().startswith("sampler,budget,nfe,critic,")


CASES = {
    "critic of the package": (
        "fit-critic digits",
        "digits comes with the package: say where its critic is to be stored",
    ),
    "unknown network": ("fit-critic {f} --out {t} --network unet", "Unknown network of a critic 'unet'"),
    "network for images": ("fit-critic {f} --out {t} --network half-unet", "half-unet takes images"),
    "classes that are not there": ("fit-critic {f} --out {t} --conditional", "needs classes, but the model knows none"),
    "critic of refined samples": ("fit-critic {f} --out {t} --sampler edm+dg", "the plain sampler, edm"),
    "no updates": (
        "fit-critic {f} --out {t} -n 20 --steps 2 --updates 0",
        "updates must be a whole number >= 1, got 0",
    ),
    "both kinds of samples": (
        "fit-critic {f} --out {t} --generated {f} -n 20",
        "n=20 says how many samples to generate, but those of",
    ),
    "nothing generated": ("fit-critic {f} --out {t} --generated {t}/nothing.npz", "do not exist"),
    "unknown refinement": ("sample {f} --refine dgg --out {t}/g.npz", "Unknown refinement 'dgg'. Did you mean 'dg'?"),
    "no critic": ("sample {p} --refine dg --out {t}/g.png", "has no critic: train one with `trueward fit-critic`"),
    "no critic for compare": ("compare {p} --samplers diffrs --out {t}/r.html", "has no critic"),
    "critic of another model": ("sample {p} --critic {f} --refine dg --out {t}/g.png", "takes samples of shape (2,)"),
    "percentile as a percentage": (
        "sample {f} --refine diffrs --percentile 75 --out {t}/g.npz",
        "for the 75th percentile give 0.75",
    ),
    "budget too small": ("sample {f} --refine diffrs --max-nfe 3 --out {t}/g.npz", "max_nfe=3 is less than the 7"),
    "multistep": (
        "sample {f} --refine diffrs --sampler dpm-solver++ --out {t}/g.npz",
        "cannot be stepped row by row, which rejection needs",
    ),
    "weight without guidance": (
        "sample {f} --refine diffrs --weight 2 --out {t}/g.npz",
        "--weight 2 belongs to --refine dg",
    ),
    "critic without refinement": ("sample {f} --critic {f} --out {t}/g.npz", "is of no use without --refine"),
    "report without rejection": (
        "sample {f} --refine dg --report {t}/r.html --out {t}/g.npz",
        "it needs --refine diffrs",
    ),
    "report of another kind": ("sample {f} --refine diffrs --report {t}/r.pdf --out {t}/g.npz", "must end in .html"),
    "option of a correction": ("sample {f} --sampler edm+dg:wieght=2 --out {t}/g.npz", "Did you mean 'weight'?"),
    "value of the wrong kind": (
        "sample {f} --sampler edm+diffrs:backsteps=two --out {t}/g.npz",
        "backsteps must be a whole number, got 'two'",
    ),
    "correction twice": ("sample {f} --sampler edm+dg+dg --out {t}/g.npz", "names a correction twice"),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_calls_end_with_one_sentence(case: str, run: Run, fitted: Path, plain: Path, tmp_path: Path) -> None:
    words, message = CASES[case]
    out = run(*words.format(f=fitted, p=plain, t=tmp_path).split())
    assert out.code == 2
    assert message in out.err
    assert out.err.count("\n") <= 2
    assert "Traceback" not in out.err


def test_a_critic_is_not_used_after_its_model_was_trained_on(run: Run, fitted: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(fitted, other)
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    save_file({k: v * 1.01 for k, v in weights.items()}, other / "model.safetensors")
    out = run("sample", other, "--refine", "dg", "-n", 2, "--out", tmp_path / "g.npz")
    assert out.code == 2
    assert "was trained for another model (other weights)" in out.err
