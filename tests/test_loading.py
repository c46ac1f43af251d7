"""Models as folders: written and opened again, and what is refused with which sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import trueward.loading as loading
from trueward.denoisers import ClassifierFreeGuidance, denoiser
from trueward.loading import build_model, load, model_config, save_run, zoo_names
from trueward.networks import MLP, UNet, register_network
from trueward.schedules import EDM, VE, DiscreteSchedule, VPCosine, VPLinear


def _model(prediction="edm", schedule=None, **options):
    torch.manual_seed(0)
    net = UNet(1, 8, 8, (1, 2), 1, (4,), num_classes=3, head_width=8)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return denoiser(
        net, schedule or EDM(), prediction, shape=(1, 8, 8), data_range=(-1.0, 1.0), num_classes=3, **options
    )


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [
        ("eps", DiscreteSchedule.linear(20)),
        ("x0", VPLinear(beta_max=15.0)),
        ("v", VPCosine()),
        ("score", VE(sigma_max=20.0)),
        ("edm", EDM(sigma_max=40.0)),
    ],
)
def test_every_parametrisation_comes_back_the_same(tmp_path, prediction, schedule):
    model = _model(prediction, schedule, **({"sigma_data": 0.3} if prediction == "edm" else {})).eval()
    save_run(tmp_path / "run", model, {"note": "kept"})
    again = load(tmp_path / "run")
    assert type(again) is type(model)
    assert again.schedule == model.schedule
    assert (again.shape, again.data_range, again.num_classes) == (model.shape, model.data_range, model.num_classes)
    assert again.record["note"] == "kept"
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.4, 0.9], dtype=torch.float64)
    labels = torch.tensor([1, 3])
    assert torch.equal(again(x, t, class_labels=labels).mean, model(x, t, class_labels=labels).mean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_is_float32_in_memory(tmp_path, dtype):
    model = _model()
    save_run(tmp_path, model, dtype=dtype)
    assert {w.dtype for w in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    again = load(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for a, b in zip(again.parameters(), model.parameters()):
        torch.testing.assert_close(a, b, rtol=0.01, atol=1e-6)


def test_channels_last_weights_are_stored_as_any_other(tmp_path):
    model = _model()
    save_run(tmp_path / "a", model)
    save_run(tmp_path / "b", model.to(memory_format=torch.channels_last))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_description_in_json_builds_the_model():
    config = json.loads(json.dumps(model_config(_model())))
    assert model_config(build_model(config)) == config


def test_a_registered_network_of_ones_own_is_stored_and_loaded(tmp_path):
    @register_network
    class Own(nn.Module):
        def __init__(self, width=4):
            super().__init__()
            self.config = {"network": "Own", "width": width}
            self.layer = nn.Linear(2, 2)

        def forward(self, x, label):
            return self.layer(x)

    save_run(tmp_path, denoiser(Own(5), VPLinear(), "eps"))
    assert load(tmp_path).network.config["width"] == 5


class Stranger(nn.Module):
    def forward(self, x, label):
        return x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: denoiser(Stranger(), VPLinear()), "Stranger cannot be rebuilt.*register_network"),
        (lambda: ClassifierFreeGuidance(_model(), 2.0), "ClassifierFreeGuidance cannot be stored"),
        (lambda: denoiser(MLP(2, 8, 1), VPLinear(), label=lambda t: t), "label function"),
    ],
)
def test_what_json_cannot_describe_is_refused_before_anything_is_written(tmp_path, model, message):
    with pytest.raises(ValueError, match=message):
        save_run(tmp_path / "run", model())
    assert not (tmp_path / "run").exists()


@pytest.fixture
def run(tmp_path):
    return save_run(tmp_path / "run", _model())


def _edit(folder, change):
    content = json.loads((folder / "run.json").read_text())
    change(content)
    (folder / "run.json").write_text(json.dumps(content))


def _weights(folder, change):
    from safetensors.torch import save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "run.json").unlink(), "no run.json"),
        (lambda f: (f / "run.json").write_text('{"kind"'), "run.json is not a JSON file"),
        (lambda f: (f / "run.json").write_text("[]"), "does not describe a trueward run"),
        (lambda f: _edit(f, lambda c: c.update(format=99)), "format 99"),
        (lambda f: _edit(f, lambda c: c.pop("network")), "no entry 'network'"),
        (lambda f: _edit(f, lambda c: c["denoiser"].pop("schedule")), "damaged"),
        (lambda f: _edit(f, lambda c: c["network"].update(network="Theirs")), "import its module first"),
        (lambda f: _edit(f, lambda c: c["network"].update(width=16)), r"of shape \(.*\), but the network needs"),
        (lambda f: _edit(f, lambda c: c["denoiser"].update(prediction="eps2")), "Did you mean 'eps'"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
            "cut short or damaged",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cut short or damaged"),
        (lambda f: _weights(f, lambda w: w.pop("stem.bias")), "no weight 'stem.bias'"),
        (lambda f: _weights(f, lambda w: w.update(more=torch.ones(1))), "'more' that the network does not know"),
        (lambda f: _weights(f, lambda w: w["stem.bias"].fill_(float("nan"))), "'stem.bias' holds NaN"),
    ],
)
def test_a_damaged_run_is_refused_with_its_reason(run, damage, message):
    damage(run)
    with pytest.raises(ValueError, match=message):
        load(run)


def test_a_name_that_is_not_there_suggests_one_that_is(monkeypatch, tmp_path):
    zoo = tmp_path / "zoo"
    save_run(zoo / "digits", _model())
    monkeypatch.setattr(loading, "_ZOO", zoo)
    assert zoo_names() == ["digits"]
    assert load("digits").num_classes == 3
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        load("digit")
    with pytest.raises(ValueError, match=r"no folder runs/nowhere. Models that come with trueward: digits"):
        load("runs/nowhere")


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "theirs/edm.pkl", "weights.ckpt"])
def test_a_pickle_is_refused_unopened(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    with pytest.raises(ValueError, match=r"is a pickle.*refused"):
        load(path)


def test_a_file_of_a_run_stands_for_its_folder(run, tmp_path):
    assert load(run / "run.json").num_classes == 3
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="give the folder of a run"):
        load(tmp_path / "notes.txt")
