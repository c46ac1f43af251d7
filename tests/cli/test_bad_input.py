"""Wrong calls: exit code 2, one sentence on standard error, no traceback, and nothing half-written."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from .conftest import Outcome

Run = Callable[..., Outcome]

# {m}: a class-conditional run, {p}: an unconditional one, {t}: an empty folder, {d}: a folder with broken things
CASES = {
    "unknown command": ("smaple {m} --out {t}/g.png", "No such command"),
    "unknown flag": ("sample {m} --out {t}/g.png --stpes 5", "--stpes"),
    "no output": ("sample {m}", "--out"),
    "steps not a number": ("sample {m} --out {t}/g.png --steps ten", "ten"),
    "unknown sampler": ("sample {m} --sampler dpm-slover++ --out {t}/g.png", "Did you mean 'dpm-solver++'?"),
    "unknown model": ("sample digitss --out {t}/g.png", "digitss"),
    "missing folder": ("sample {t}/nowhere/run --out {t}/g.png", "nowhere/run"),
    "no steps": ("sample {m} --steps 0 --out {t}/g.png", "steps must be a whole number >= 1, got 0"),
    "no budget": ("sample {m} --nfe 0 --out {t}/g.png", "nfe must be a whole number >= 1, got 0"),
    "steps and budget": ("sample {m} --steps 5 --nfe 5 --out {t}/g.png", "not both"),
    "no samples": ("sample {m} -n 0 --out {t}/g.png", "-n must be at least 1, got 0"),
    "negative samples": ("sample {m} -n -5 --out {t}/s", "-n must be at least 1, got -5"),
    "no batch": ("sample {m} --batch-size 0 --out {t}/g.png", "--batch-size must be at least 1, got 0"),
    "empty shards": ("sample {m} --shard-size 0 --out {t}/s", "shard_size must be at least 1, got 0"),
    "unknown storage": ("sample {m} --dtype int8 --out {t}/s", "uint8 or float32, got 'int8'"),
    "unknown option": ("sample {m} --option odrer=3 --out {t}/g.png", "Did you mean 'order'?"),
    "malformed option": ("sample {m} --option order --out {t}/g.png", "key=value"),
    "option of the wrong kind": ("sample {m} --sampler ddim:eta=much --out {t}/g.png", "eta"),
    "option out of range": ("sample {m} --sampler ddim:eta=2 --out {t}/g.png", "eta must lie in [0, 1], got 2"),
    "negative time": ("sample {m} --option t_end=-0.1 --out {t}/g.png", "t_end must be a finite time >= 0, got -0.1"),
    "order 7": ("sample {m} --option order=7 --out {t}/g.png", "order"),
    "label out of range": ("sample {m} --class 10 --out {t}/g.png", "must lie in 0 ... 9, got 10"),
    "label not a number": ("sample {m} --class seven --out {t}/g.png", "'seven'"),
    "class of an unconditional model": ("sample {p} --class 1 --out {t}/g.png", "knows no classes"),
    "guidance of an unconditional model": ("sample {p} --guidance 2 --out {t}/g.png", "knows no classes"),
    "guidance without a class": ("sample {m} --guidance 2 --out {t}/g.png", "needs a class"),
    "guidance not finite": ("sample {m} --guidance nan --class 1 --out {t}/g.png", "guidance must be a finite number"),
    "unknown device": ("sample {m} --device gpu9 --out {t}/g.png", "'gpu9' is not available"),
    "output below a file": ("sample {m} --out {d}/notes.txt/g.png", "is a file, not a folder"),
    "folder where a picture should be": ("sample {m} --out {d}/folder.png", "is a folder"),
    "pickle as a model": ("sample {d}/model.pt --out {t}/g.png", "pickle"),
    "truncated weights": ("sample {d}/truncated --out {t}/g.png", "cut short or damaged"),
    "weights of another network": ("sample {d}/another --out {t}/g.png", "network"),
    "damaged record": ("sample {d}/garbled --out {t}/g.png", "run.json"),
    "folder without a run": ("sample {d}/pictures --out {t}/g.png", "run.json"),
    "unknown correction": ("sample {m} --sampler ddim+dgg --out {t}/g.png", "Unknown correction 'dgg'"),
    "empty list of samplers": ("compare {m} --samplers ddim,,edm --out {t}/r.html", "empty item"),
    "sampler twice": ("compare {m} --samplers ddim,ddim --out {t}/r.html", "listed twice"),
    "malformed budgets": ("compare {m} --steps 5,x --out {t}/r.html", "got 'x'"),
    "budget zero": ("compare {m} --steps 0,5 --out {t}/r.html", "--steps must be whole numbers >= 1, but got 0"),
    "page with a wrong name": ("compare {m} --out {t}/r.pdf", "must end in .html"),
    "unknown metric": ("compare {m} --metrics frechett --out {t}/r.html", "Did you mean 'frechet'?"),
    "unknown features": ("compare {m} --features digitz --out {t}/r.html", "digitz"),
    "no seeds": ("compare {m} --seeds 0 --out {t}/r.html", "--seeds must be at least 1, got 0"),
    "one sample": ("compare {m} -n 1 --out {t}/r.html", "n must be at least 2, got 1"),
    "sampler without budgets": ("compare {m} --samplers ode --out {t}/r.html", "chooses its own number"),
    "reference of another shape": ("compare {m} --reference {d}/wide.npz --out {t}/r.html", "shape"),
    "missing samples": ("evaluate {t}/nowhere digits", "nowhere"),
    "not an image": ("evaluate {d}/pictures digits", "broken.png"),
    "NaN in the data": ("evaluate {d}/nan.npz digits", "NaN"),
    "pickled array": ("evaluate {d}/objects.npz digits", "never unpickled"),
    "unknown metric to evaluate": ("evaluate {d}/good.npz digits --metrics fid", "Unknown metric 'fid'"),
    "unknown split": ("evaluate {d}/good.npz digits --split valid", "Unknown split 'valid'"),
    "other shapes": ("evaluate {d}/wide.npz digits", "cannot be compared"),
    "result with a wrong name": ("evaluate {d}/good.npz digits --out {t}/scores.txt", "must end in .json"),
    "unknown sampler to certify": ("certify edn", "Did you mean 'edm'?"),
    "no module to certify from": ("certify nowhere.at.all:f", "no module 'nowhere'"),
    "no function to certify": ("certify math:euler", "has no 'euler'"),
    "unknown method": ("methods dpm-solvr", "Did you mean 'dpm-solver'?"),
    "nothing to train on": ("train --out {t}/r", "--data"),
    "unknown data": ("train --data digit --out {t}/r", "Did you mean 'digits'?"),
    "missing data": ("train --data {t}/none.npz --out {t}/r", "do not exist"),
    "NaN to train on": ("train --data {d}/nan.npz --out {t}/r", "NaN"),
    "no training steps": ("train --data digits --steps 0 --out {t}/r", "steps must be a whole number >= 1, got 0"),
    "negative learning rate": ("train --data digits --lr -1 --out {t}/r", "lr must be positive, got -1"),
    "average out of range": ("train --data digits --ema 1 --out {t}/r", "ema must lie in [0, 1), got 1"),
    "unknown noise schedule": ("train --data digits --schedule vp-liner --out {t}/r", "Did you mean 'vp-linear'?"),
    "unknown learning rate schedule": ("train --data digits --lr-schedule cosin --out {t}/r", "Did you mean 'cosine'?"),
    "unknown prediction": ("train --data digits --prediction epsilon --out {t}/r", "Did you mean 'eps'?"),
    "unknown network": ("train --data digits --network UNett --out {t}/r", "Did you mean 'UNet'?"),
    "malformed multipliers": ("train --data digits --multipliers 1,b --out {t}/r", "whole numbers"),
    "unknown precision": ("train --data digits --mixed-precision fp8 --out {t}/r", "fp8"),
    "folder in use": ("train --data digits --out {d}/pictures", "not empty"),
    "nothing to resume": ("train --out {t}/r --resume", "no run.json"),
    "other model on resuming": ("train --out {m} --resume --width 64", "--width cannot be changed"),
}


@pytest.fixture(scope="module")
def broken(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that are not what they should be."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "notes.txt").write_text("not a folder")
    (folder / "folder.png").mkdir()
    (folder / "model.pt").write_bytes(pickle.dumps({"weights": [1.0]}))
    shutil.copytree(model, folder / "truncated")
    weights = folder / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    shutil.copytree(model, folder / "another")
    record = json.loads((model / "run.json").read_text())
    record["network"]["width"] = 16
    (folder / "another" / "run.json").write_text(json.dumps(record))
    shutil.copytree(model, folder / "garbled")
    (folder / "garbled" / "run.json").write_text('{"format": 1,')
    (folder / "pictures").mkdir()
    (folder / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    np.savez(folder / "good.npz", x=images)
    np.savez(folder / "wide.npz", x=np.zeros((50, 8, 9), np.uint8))
    np.savez(folder / "nan.npz", x=np.full((50, 1, 8, 8), np.nan, np.float32))
    np.savez(folder / "objects.npz", x=np.array([{"a": 1}] * 50, dtype=object))
    return folder


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_wrong_calls_are_told_in_one_sentence(
    case: str, run: Run, model: Path, plain: Path, broken: Path, tmp_path: Path
) -> None:
    line, message = CASES[case]
    words = line.format(m=model, p=plain, t=tmp_path, d=broken).split()
    before = listing(broken), listing(model)
    outcome = run(*words)
    assert outcome.code == 2, outcome
    assert message in outcome.err
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1, "one sentence on one line"
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert listing(tmp_path) == {}, "nothing is left behind"
    assert (listing(broken), listing(model)) == before, "what was there is as it was"


def test_a_full_disk_is_told_and_leaves_no_half_of_a_file(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        written(self, content[:64])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    outcome = run("sample", model, "--steps", 2, "-n", 4, "--out", tmp_path / "s")
    assert outcome.code == 2
    assert outcome.err.startswith("Error: No space left on device: ")
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("shard-*"))


def test_a_picture_that_cannot_be_written_leaves_nothing(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(arguments[1]))

    monkeypatch.setattr("trueward.records.os.replace", full)
    outcome = run("sample", model, "--steps", 2, "-n", 4, "--out", tmp_path / "g.png")
    assert outcome.code == 2
    assert "No space left on device" in outcome.err
    assert listing(tmp_path) == {}


def test_a_read_only_folder_is_told_before_anything_is_drawn(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trueward.cli.options.os.access", lambda path, mode: False)
    monkeypatch.setattr("trueward.loading.load", lambda name: pytest.fail("the model was loaded"))
    for words in (["sample", model, "--out", tmp_path / "g.png"], ["compare", model, "--out", tmp_path / "r.html"]):
        outcome = run(*words)
        assert (outcome.code, "cannot be written to" in outcome.err) == (2, True)


def test_samples_of_another_configuration_are_refused(run: Run, model: Path, tmp_path: Path) -> None:
    call = ["sample", model, "--steps", 2, "-n", 4, "--out", tmp_path / "s"]
    assert run(*call).code == 0
    before = listing(tmp_path)
    outcome = run(*call, "--seed", 1)
    assert outcome.code == 2
    assert "seed was 0, now 1" in outcome.err
    assert listing(tmp_path) == before


def test_vectors_have_no_picture(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trueward.schedules import VPLinear
    from trueward.truth import Gaussian, TruthDenoiser

    monkeypatch.setattr("trueward.loading.load", lambda name: TruthDenoiser(Gaussian([0.0, 0.0], 1.0), VPLinear()))
    outcome = run("sample", "vectors", "--out", tmp_path / "g.png")
    assert outcome.code == 2
    assert "no images" in outcome.err
    assert run("sample", "vectors", "--steps", 2, "-n", 3, "--out", tmp_path / "g.npz").code == 0
    assert np.load(tmp_path / "g.npz")["arr_0"].shape == (3, 2)


def test_one_of_several_processes_speaks_for_all(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sample", model, "--steps", 0, "--out", tmp_path / "s"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        outcome = run(*words)
        assert outcome.code == 2
        said.append(outcome.err)
    assert said[0].startswith("Error: ")
    assert said[1] == ""


def test_debug_shows_the_traceback_wherever_it_stands(model: Path, tmp_path: Path) -> None:
    from trueward.cli import main

    for words in (["--debug", "sample"], ["sample", "--debug"]):
        with pytest.raises(ValueError, match="steps must be"):
            main([*words, str(model), "--steps", "0", "--out", str(tmp_path / "g.png")])
