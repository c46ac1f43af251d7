"""Sharded sampling: identity, interruption, several processes, and folders that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from trueward import VPLinear, denoiser
from trueward.denoisers import Denoiser
from trueward.drawing import Drawing, guided, model_fingerprint, parse_labels
from trueward.networks import UNet
from trueward.samplers import DDIM, Ancestral, EDMHeun
from trueward.shards import ShardFolder, from_stored, sample_to_folder, shard_size_for, to_stored


def model() -> Denoiser:
    """A small conditional U-Net with random weights everywhere (a fresh one answers zero)."""
    torch.manual_seed(0)
    network = UNet(channels=1, size=8, width=8, num_classes=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return denoiser(network, VPLinear(), shape=(1, 8, 8), data_range=(-1.0, 1.0), num_classes=3).eval()


def drawing(seed: int = 3, steps: int = 4) -> Drawing:
    return Drawing(model(), Ancestral(steps=steps), seed, (0, 2), 1.5)


WORKER = """
import sys
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from test_shards import drawing
from trueward.shards import sample_to_folder
record = sample_to_folder(drawing(steps={steps}), {n}, {folder!r}, batch_size=8, shard_size=8, dtype="float32")
print(record["complete"])
"""


def worker(folder: Path, n: int = 40, steps: int = 4, **environment: str) -> subprocess.Popen[str]:
    script = WORKER.format(here=str(Path(__file__).parent), n=n, steps=steps, folder=str(folder))
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The samples 0 ... 39, one at a time: no neighbour can have touched them."""
    return torch.cat([batch.x for batch in drawing().batches(0, 40, 1)])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_samples_do_not_depend_on_the_batch_size(batch_size: int, reference: torch.Tensor, tmp_path: Path) -> None:
    sample_to_folder(drawing(), 40, tmp_path / "s", batch_size=batch_size, shard_size=16, dtype="float32")
    samples, labels = ShardFolder(tmp_path / "s").load()
    assert torch.allclose(samples, reference, atol=1e-5)
    assert labels is not None
    assert labels.tolist() == [0, 2] * 20


@pytest.mark.slow
def test_two_processes_write_the_same_files_as_one(tmp_path: Path) -> None:
    alone = worker(tmp_path / "one")
    both = [worker(tmp_path / "two", RANK=str(rank), WORLD_SIZE="2") for rank in (0, 1)]
    outputs = [process.communicate(timeout=120) for process in (alone, *both)]
    assert [process.returncode for process in (alone, *both)] == [0, 0, 0], outputs
    one, two = (sorted((tmp_path / name).glob("shard-*")) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert len(one) == 5
    for a, b in zip(one, two):
        left, right = ShardFolder(a.parent).read(int(a.stem[6:])), ShardFolder(b.parent).read(int(b.stem[6:]))
        assert all(torch.equal(left[key], right[key]) for key in ("samples", "indices", "labels"))
    assert ShardFolder(tmp_path / "two").record["complete"]


@pytest.mark.slow
def test_a_killed_process_continues_to_the_same_samples(reference: torch.Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = worker(folder, n=160, steps=8)
    deadline = time.monotonic() + 60
    while not list(folder.glob("shard-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.safetensors")}
    assert 0 < len(kept) < 20, "the process was to be killed in the middle"
    assert not ShardFolder(folder).record["complete"]
    again = worker(folder, n=160, steps=8)
    assert again.communicate(timeout=300)[0].strip() == "True"
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items()), "finished shards are kept"
    unbroken = torch.cat([batch.x for batch in drawing(steps=8).batches(0, 64, 8)])
    assert torch.equal(ShardFolder(folder).load()[0][:64], unbroken)
    assert not list(folder.glob("*.part"))


def test_a_shard_cut_short_is_made_again(tmp_path: Path) -> None:
    sample_to_folder(drawing(), 12, tmp_path, shard_size=4, dtype="float32")
    whole, _ = ShardFolder(tmp_path).load()
    path = ShardFolder(tmp_path).path(1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="missing or incomplete"):
        ShardFolder(tmp_path).load()
    sample_to_folder(drawing(), 12, tmp_path, shard_size=4, dtype="float32")
    assert torch.equal(ShardFolder(tmp_path).load()[0], whole)


def test_a_larger_n_extends_and_keeps_what_is_there(tmp_path: Path) -> None:
    sample_to_folder(drawing(), 10, tmp_path, shard_size=4, dtype="float32")
    first = ShardFolder(tmp_path).load()[0]
    stamp = ShardFolder(tmp_path).path(0).stat().st_mtime_ns
    sample_to_folder(drawing(), 20, tmp_path, shard_size=4, dtype="float32")
    longer = ShardFolder(tmp_path).load()[0]
    assert longer.shape[0] == 20
    assert torch.allclose(longer[:10], first, atol=1e-5)
    assert ShardFolder(tmp_path).path(0).stat().st_mtime_ns == stamp


def test_the_record_counts_what_was_spent(tmp_path: Path) -> None:
    record = sample_to_folder(drawing(), 10, tmp_path, shard_size=4, describe={"model": "tiny"})
    stored = json.loads((tmp_path / "sampling.json").read_text())
    assert stored == json.loads(json.dumps(record))
    assert stored["complete"]
    assert stored["nfe"] == 4
    assert stored["n"] == 10
    assert stored["seconds"] > 0
    assert stored["model"] == "tiny"
    assert stored["config"]["dtype"] == "uint8"
    assert {"versions", "git_revision", "command", "written"} <= stored.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drawing": drawing(seed=4)}, "seed was 3, now 4"),
        ({"drawing": drawing(steps=5)}, "sampler was"),
        ({"shard_size": 5}, "shard_size was 4, now 5"),
        ({"dtype": "float32"}, "dtype was uint8, now float32"),
        ({"n": 9}, "already holds 10 samples, more than n=9"),
    ],
)
def test_a_folder_of_another_configuration_is_refused_and_left_alone(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    arguments: dict[str, object] = {"drawing": drawing(), "n": 10, "folder": tmp_path, "shard_size": 4}
    sample_to_folder(**arguments)  # type: ignore[arg-type]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        sample_to_folder(**{**arguments, **change})  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_no_half_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        written(self, content[:50])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        sample_to_folder(drawing(), 10, tmp_path, shard_size=4)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["sampling.json"]
    assert sample_to_folder(drawing(), 10, tmp_path, shard_size=4)["complete"]


def test_uint8_keeps_every_grey_level() -> None:
    levels = torch.arange(256) / 255.0 * 2.0 - 1.0
    assert torch.equal(to_stored(levels, "uint8", (-1.0, 1.0)), torch.arange(256, dtype=torch.uint8))
    assert torch.allclose(from_stored(to_stored(levels, "uint8", (-1.0, 1.0)), (-1.0, 1.0)), levels, atol=1e-6)
    assert to_stored(torch.tensor([-9.0, 9.0]), "uint8", (-1.0, 1.0)).tolist() == [0, 255]


def test_the_fingerprint_sees_one_changed_weight_and_the_schedule() -> None:
    one, other = model(), model()
    assert model_fingerprint(one) == model_fingerprint(other)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert model_fingerprint(one) != model_fingerprint(other)
    assert model_fingerprint(one) != model_fingerprint(one.on(VPLinear(beta_max=19.0)))


@pytest.mark.parametrize(("text", "labels"), [("2", (2,)), ("0,2", (0, 2)), ("all", (0, 1, 2)), (None, None)])
def test_labels_from_text(text: str | None, labels: tuple[int, ...] | None) -> None:
    assert parse_labels(text, 3) == labels


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("3", 3, "0 ... 2, got 3"),
        ("-1", 3, "got -1"),
        ("two", 3, "A class is a number"),
        ("1", None, "knows no classes"),
    ],
)
def test_wrong_labels_are_named(text: str, classes: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_labels(text, classes)


def test_guidance_needs_a_conditional_model_and_a_class() -> None:
    plain = denoiser(torch.nn.Identity(), VPLinear(), shape=(2,))
    with pytest.raises(ValueError, match="knows no classes"):
        guided(plain, 2.0, None)
    with pytest.raises(ValueError, match="needs a class"):
        guided(model(), 2.0, None)
    with pytest.raises(ValueError, match=">= 0"):
        guided(model(), -1.0, (1,))
    assert guided(plain, 1.0, None) is plain


def test_a_model_without_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape of its samples"):
        Drawing(denoiser(torch.nn.Identity(), VPLinear()), DDIM(steps=2))


def rejecting() -> Drawing:
    """A mixture whose weights are corrected by rejection with the exact ratio."""
    from trueward.critics import TruthCritic
    from trueward.refinement import RefinedSampler
    from trueward.schedules import EDM
    from trueward.truth import GaussianMixture

    real, wrong = (GaussianMixture([w, 1.0 - w], [[-0.5], [0.5]], 0.01) for w in (0.5, 0.2))
    critic = TruthCritic(real, wrong, EDM())
    sampler = RefinedSampler(EDMHeun(steps=4), critic, rejection={"percentile": 0.9, "warm_up": 50})
    return Drawing(wrong.denoiser(EDM()), sampler)


def test_shards_of_rejection_hold_many_batches_and_keep_their_size_when_continued(tmp_path: Path) -> None:
    assert shard_size_for(rejecting(), tmp_path / "new", 64) == 64 * 64
    assert shard_size_for(drawing(), tmp_path / "new", 64) == 1000
    sample_to_folder(rejecting(), 50, tmp_path / "s", batch_size=20)
    assert ShardFolder(tmp_path / "s").record["config"]["shard_size"] == 64 * 20
    record = sample_to_folder(rejecting(), 80, tmp_path / "s", batch_size=30)  # another batch, the same files
    assert record["complete"]
    assert len(ShardFolder(tmp_path / "s").load()[0]) == 80
    with pytest.raises(ValueError, match="shard_size was 1280, now 7"):
        sample_to_folder(rejecting(), 80, tmp_path / "s", batch_size=30, shard_size=7)
