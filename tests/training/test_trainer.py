"""The trainer: it learns, resumes exactly, splits batches without changing them, and refuses what cannot be right."""

import json
import shutil

import pytest
import torch

from trueward.denoisers import denoiser
from trueward.loading import load
from trueward.networks import MLP
from trueward.objectives import DSM
from trueward.schedules import VPLinear
from trueward.training import Trainer, TrainingConfig, train

from .conftest import FAST, MODEL, Blobs


def _losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def _weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _same(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    return all((a[k].double() - b[k].double()).abs().max() <= tolerance for k in a)


def test_it_learns_and_the_run_can_be_loaded_and_sampled(tmp_path, blobs):
    out = tmp_path / "run"
    model = train(MODEL, blobs, out, **{**FAST, "steps": 80, "validate_every": 40, "sample_every": 80, "ema": 0.9})
    losses = _losses(out)
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    run = json.loads((out / "run.json").read_text())
    assert run["format"] == 1
    assert run["kind"] == "trueward-run"
    assert run["record"]["steps"] == 80
    assert run["record"]["images"] == 80 * 32
    assert run["record"]["validation_loss"] < losses[0]
    assert {"network", "denoiser", "objective", "training", "data", "versions"} <= run.keys()
    assert (out / "samples" / "step-00000080.png").read_bytes().startswith(b"\x89PNG")
    loaded = load(out)
    assert loaded.record == run
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 0.7)
    labels = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(loaded(x, t, class_labels=labels).mean, model(x, t, class_labels=labels).mean)
    assert not list(tmp_path.rglob("*.part"))


def test_vectors_train_too_from_a_plain_tensor(tmp_path):
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.1])
    model = denoiser(MLP(2, 16, 1), VPLinear(), "eps", shape=(2,))
    train(model, x, tmp_path / "run", **{**FAST, "steps": 30, "sample_every": 30})
    assert sum(_losses(tmp_path / "run")[-5:]) < sum(_losses(tmp_path / "run")[:5])
    assert (tmp_path / "run" / "samples" / "step-00000030.png").exists()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("stop", [7, 8])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, blobs, stop, dropout):
    model = {**MODEL, "network": {**MODEL["network"], "dropout": dropout}}
    config = {**FAST, "steps": 16, "checkpoint_every": 8}
    train(model, blobs, tmp_path / "whole", **config)

    class Killed(Exception):
        pass

    class Fragile(Blobs):
        calls = 0

        def batch(self, indices):
            if len(indices) == 32:
                Fragile.calls += 1
                if Fragile.calls > stop + 1:
                    raise Killed
            return super().batch(indices)

    Fragile.calls = -1 if stop == 8 else 0  # in the step after the checkpoint, or in the one that would have made it
    with pytest.raises(Killed):
        train(model, Fragile(), tmp_path / "broken", **config)
    train(model, blobs, tmp_path / "broken", resume=True, **config)
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "broken"))
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "broken")


def test_accumulation_in_pieces_equals_the_whole_batch(tmp_path, blobs):
    for pieces in (1, 4):
        train(MODEL, blobs, tmp_path / str(pieces), **{**FAST, "steps": 6, "accumulation": pieces})
    torch.testing.assert_close(_losses(tmp_path / "4"), _losses(tmp_path / "1"), rtol=1e-4, atol=0)
    assert _same(_weights(tmp_path / "4"), _weights(tmp_path / "1"), 1e-4)  # Adam's first steps divide by tiny moments


def test_the_seed_decides_everything(tmp_path, blobs):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(MODEL, blobs, tmp_path / name, **{**FAST, "steps": 3, "seed": seed})
    assert _losses(tmp_path / "a") == _losses(tmp_path / "b") != _losses(tmp_path / "c")


def test_bf16_trains_to_nearly_the_same_loss(tmp_path, blobs):
    config = {**FAST, "steps": 20}
    train(MODEL, blobs, tmp_path / "full", **config)
    train(MODEL, blobs, tmp_path / "half", **{**config, "mixed_precision": "bf16"})
    full, half = (sum(_losses(tmp_path / n)[-10:]) for n in ("full", "half"))
    assert abs(half / full - 1) < 0.05
    assert all(w.dtype == torch.float32 for w in _weights(tmp_path / "half").values())
    assert _losses(tmp_path / "full") != _losses(tmp_path / "half")


def test_auto_measures_records_and_keeps_its_choice_on_resume(tmp_path, blobs):
    config = {**FAST, "speed": "auto", "steps": 4, "schedule": "constant", "held_out": 0}
    train(MODEL, blobs, tmp_path / "run", **config)
    first = json.loads((tmp_path / "run" / "run.json").read_text())["record"]["speed"]
    assert set(first["seconds"]) == {"float32", "float32, channels last", "bf16", "bf16, channels last"}
    train(MODEL, blobs, tmp_path / "run", resume=True, **{**config, "steps": 8})
    assert json.loads((tmp_path / "run" / "run.json").read_text())["record"]["speed"] == first
    assert len(_losses(tmp_path / "run")) == 8


def test_old_checkpoints_go_and_a_damaged_one_falls_back_to_the_one_before(tmp_path, blobs, capsys):
    config = {**FAST, "steps": 12, "checkpoint_every": 4}
    train(MODEL, blobs, tmp_path / "whole", **config)
    folders = sorted(p.name for p in (tmp_path / "whole" / "checkpoints").iterdir())
    assert folders == ["step-00000008", "step-00000012"]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    file = tmp_path / "cut" / "checkpoints" / "step-00000012" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    train(MODEL, blobs, tmp_path / "cut", resume=True, **{**config, "progress": True})
    said = capsys.readouterr().err
    assert "cut short" in said
    assert "Resuming" in said
    assert "step 8" in said
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "cut"))
    for folder in (tmp_path / "cut" / "checkpoints").iterdir():
        (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match="None of the 2 checkpoints"):
        train(MODEL, blobs, tmp_path / "cut", resume=True, **config)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path, blobs):
    from trueward.training.checkpoints import load_checkpoint

    train(MODEL, blobs, tmp_path / "run", **{**FAST, "steps": 2})
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    content = bytearray((path / "ema.safetensors").read_bytes())
    content[-5] ^= 1
    (path / "ema.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        load_checkpoint(path)


def test_an_interrupt_saves_where_it_is(tmp_path, blobs):
    class Interrupted(DSM):
        def __call__(self, denoiser, batch, generator):
            if denoiser.training and batch["total"] == 32 and getattr(Interrupted, "calls", 0) == 5:
                raise KeyboardInterrupt
            Interrupted.calls = getattr(Interrupted, "calls", 0) + 1
            return super().__call__(denoiser, batch, generator)

    config = {**FAST, "steps": 10, "log_every": 0}
    with pytest.raises(KeyboardInterrupt):
        train(MODEL, blobs, tmp_path / "run", objective=Interrupted("edm"), **config)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]
    train(MODEL, blobs, tmp_path / "whole", objective=DSM("edm"), **config)
    train(MODEL, blobs, tmp_path / "run", objective=DSM("edm"), resume=True, **config)
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "run"))


def test_a_loss_that_becomes_nan_stops_with_a_sentence_and_leaves_the_checkpoint(tmp_path, blobs):
    class Breaking(DSM):
        def __call__(self, denoiser, batch, generator):
            Breaking.calls = getattr(Breaking, "calls", 0) + 1
            losses = super().__call__(denoiser, batch, generator)
            return losses * float("nan") if Breaking.calls > 4 else losses

    config = {**FAST, "steps": 10, "checkpoint_every": 2, "held_out": 0}
    with pytest.raises(ValueError, match="became nan by step 5: lower the learning rate"):
        train(MODEL, blobs, tmp_path / "run", objective=Breaking("edm"), **config)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert all(w.isfinite().all() for w in _weights(tmp_path / "run").values())


def _broken(blobs, **changes):
    for name, value in changes.items():
        setattr(blobs, name, value)
    return blobs


def _poke(x, value):
    x = x.clone()
    x[17, 0, 2, 3] = value
    return x


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (lambda b: {"x": _poke(b.x, float("nan"))}, {}, "Sample 17 of the data holds NaN"),
        (lambda b: {"x": _poke(b.x, 3.0)}, {}, r"must lie in \[-1, 1\], but reach from .* to 3"),
        (lambda b: {"labels": b.labels + 1}, {}, "Labels must lie in 0 ... 1, but sample 1 has 2"),
        (lambda b: {"shape": (1, 9, 9)}, {}, r"shape \(1, 9, 9\)"),
        (lambda b: {"num_classes": 7}, {}, "7 classes"),
        (lambda b: {"num_classes": None}, {}, "no labels"),
        (lambda b: {}, {"batch_size": 500}, "batch_size=500 is larger than the 224 samples"),
        (lambda b: {}, {"batch_size": 30, "accumulation": 4}, "multiple of processes x accumulation"),
        (lambda b: {}, {"held_out": 256}, "leaves nothing"),
        (lambda b: {}, {"steps": 0}, "steps must be a whole number >= 1"),
        (lambda b: {}, {"lr": -1.0}, "lr must be positive"),
        (lambda b: {}, {"clip": 0.0}, "clip"),
        (lambda b: {}, {"ema": 1.0}, "ema"),
        (lambda b: {}, {"betas": (0.9, 1.0)}, "betas"),
        (lambda b: {}, {"warmup": -1}, "warmup"),
        (lambda b: {}, {"schedule": "cosinus"}, "Did you mean 'cosine'"),
        (lambda b: {}, {"mixed_precision": "fp8"}, "mixed_precision"),
        (lambda b: {}, {"mixed_precision": "fp16"}, "needs a CUDA GPU"),
        (lambda b: {}, {"batchsize": 3}, "Did you mean 'batch_size'"),
    ],
)
def test_wrong_data_and_settings_get_one_sentence_and_write_nothing(tmp_path, blobs, changes, settings, message):
    with pytest.raises(ValueError, match=message):
        train(MODEL, _broken(blobs, **changes(blobs)), tmp_path / "run", **{**FAST, "steps": 2, **settings})
    assert not list(tmp_path.rglob("*.*"))


def test_a_folder_is_not_overwritten_and_runs_are_not_mixed(tmp_path, blobs):
    config = {**FAST, "steps": 2}
    train(MODEL, blobs, tmp_path / "run", **config)
    with pytest.raises(ValueError, match="not empty"):
        train(MODEL, blobs, tmp_path / "run", **config)
    with pytest.raises(ValueError, match=r"started with lr=0.002.*resumed with lr=0.1"):
        train(MODEL, blobs, tmp_path / "run", resume=True, **{**config, "lr": 0.1})
    with pytest.raises(ValueError, match="steps=2"):
        train(MODEL, blobs, tmp_path / "run", resume=True, **{**config, "steps": 3})
    other = {**MODEL, "network": {**MODEL["network"], "width": 16}}
    with pytest.raises(ValueError, match="network width=8"):
        train(other, blobs, tmp_path / "run", resume=True, **config)
    with pytest.raises(ValueError, match="objective weighting='edm'"):
        train(MODEL, blobs, tmp_path / "run", resume=True, objective=DSM("eps"), **config)
    with pytest.raises(ValueError, match="data n=256"):
        train(MODEL, Blobs(128), tmp_path / "run", resume=True, **config)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not a trueward run"):
        train(MODEL, blobs, tmp_path / "other", resume=True, **config)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cannot be written"):
        train(MODEL, blobs, tmp_path / "file", **config)
    with pytest.raises(ValueError, match="as config or by keyword"):
        train(MODEL, blobs, tmp_path / "new", config=TrainingConfig(), steps=3)


def test_resuming_an_empty_folder_starts_and_a_finished_run_stays(tmp_path, blobs):
    config = {**FAST, "steps": 2}
    train(MODEL, blobs, tmp_path / "run", resume=True, **config)
    weights = _weights(tmp_path / "run")
    train(MODEL, blobs, tmp_path / "run", resume=True, **config)
    assert _same(weights, _weights(tmp_path / "run"))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, blobs, monkeypatch):
    import trueward.training.checkpoints as checkpoints

    def full(tensors, path, metadata=None):
        if "step-00000004" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return save(tensors, path, metadata)

    save = checkpoints.save_tensors
    monkeypatch.setattr(checkpoints, "save_tensors", full)
    with pytest.raises(ValueError, match="No space left"):
        train(MODEL, blobs, tmp_path / "run", **{**FAST, "steps": 6, "checkpoint_every": 2})
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert load(tmp_path / "run").record["record"]["steps"] == 2


def test_the_average_is_what_is_validated_and_returned(tmp_path, blobs):
    trainer = Trainer(
        denoiser(MLP((1, 8, 8), 16, 1, 2), VPLinear(), "v", shape=(1, 8, 8), num_classes=2),
        blobs,
        tmp_path / "run",
        TrainingConfig(**{**FAST, "steps": 10, "ema": 0.5}),
    )
    averaged = trainer.fit()
    raw = dict(trainer.denoiser.network.named_parameters())
    kept = dict(averaged.network.named_parameters())
    assert not averaged.training
    assert any((raw[k] - kept[k]).abs().max() > 1e-6 for k in raw)
    assert trainer.validate() == trainer.validate()  # same times and noise every time
