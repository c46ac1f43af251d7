"""Features by description, and the classifiers behind them."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from trueward.data import Dataset, load_data
from trueward.metrics import (
    Classifier,
    FrechetStatistics,
    class_accuracy,
    classifier_record,
    default_features,
    feature_extractor,
    frechet_distance,
    load_classifier,
    save_classifier,
    train_classifier,
)
from trueward.metrics.classifier import FOLDER


class Sums(nn.Module):
    """Two features: the sum and the largest value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.flatten(1).sum(1), x.flatten(1).amax(1)], dim=1)


class PretendInception(nn.Module):
    """Refuses what Inception would, and gives the mean of each colour."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8
        assert return_features
        assert x.size(1) == 3
        return x.to(torch.float32).mean([2, 3])


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=200)


def test_values_are_flattened_and_keep_their_type():
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    found = feature_extractor(None)(x)
    assert found.dtype == torch.float64
    assert torch.equal(found, x.flatten(1))


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_bundled_classifiers_are_small_and_record_how_they_were_made(name):
    record = classifier_record(name)
    assert (FOLDER / f"{name}.safetensors").stat().st_size < 2**20
    assert record["held_out_accuracy"] >= {"digits": 0.97, "mnist": 0.99}[name]
    assert {"seed", "versions", "epochs", "training_images", "held_out_images"} <= set(record)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_bundled_classifier_is_as_right_as_its_record_says(name):
    try:
        data = load_data(name, split="test")
    except ValueError as error:
        pytest.skip(str(error))
    data = data.subset(slice(0, 2000))
    found = class_accuracy(data, data.labels, name)
    stated = classifier_record(name)["held_out_accuracy"]
    assert abs(found.value - stated) <= 4 * found.standard_error


def test_the_features_are_what_the_classifier_decides_by(digits):
    model = load_classifier("digits")
    features = feature_extractor("digits")(digits.x)
    assert features.shape == (200, 64)
    assert torch.allclose(model.head(features), model(digits.x), atol=1e-5)
    assert torch.equal(model.classify(digits.x), model(digits.x).argmax(1))


def test_values_beyond_the_range_are_cut_as_in_a_picture(digits):
    model = load_classifier("digits")
    x = digits.x[:5] * 1.5
    assert torch.equal(model.features(x), model.features(x.clamp(-1, 1)))


def test_features_do_not_depend_on_the_batch(digits):
    extractor = feature_extractor("digits")
    assert torch.allclose(extractor.extract(digits, batch_size=7), extractor.extract(digits.x), atol=1e-5)


def test_torchscript_files_are_features_named_by_their_content(tmp_path):
    x = torch.randn(30, 1, 4, 4)
    path = tmp_path / "sums.pt"
    torch.jit.trace(Sums(), x).save(str(path))
    found = feature_extractor(str(path))
    assert torch.allclose(found(x), Sums()(x))
    assert frechet_distance(x, x + 1, path) == pytest.approx(16**2 + 1, rel=1e-4)
    statistics = FrechetStatistics.of(x, path)
    torch.jit.trace(nn.Flatten(), x).save(str(path))
    with pytest.raises(ValueError, match="cannot be compared"):
        frechet_distance(x, statistics, path)


def test_inception_is_given_stored_pictures_in_colour(tmp_path):
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(PretendInception()).save(str(path))
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4), dtype=np.uint8)
    data = load_data(images)
    found = feature_extractor(f"inception:{path}").extract(data)
    expected = torch.from_numpy(images).double().mean([1, 2])
    assert torch.allclose(found, expected[:, None].expand(-1, 3), atol=1e-4)


def test_any_callable_is_features(digits):
    value = frechet_distance(digits.x + 0.1, digits.x, Sums())
    assert value == pytest.approx(6.4**2 + 0.1**2, rel=1e-4)


def test_statistics_of_a_classifier_are_told_by_its_weights(digits):
    model = load_classifier("digits")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.neck.bias += 1
    with pytest.raises(ValueError, match="cannot be compared"):
        frechet_distance(FrechetStatistics.of(digits, model), FrechetStatistics.of(digits, other))


def test_the_default_is_the_classifier_of_the_same_data(digits):
    assert default_features(digits) == "digits"
    assert default_features(Dataset(torch.zeros(3, 1, 28, 28), name="digits")) is None
    assert default_features(Dataset(torch.zeros(3, 2))) is None


def test_class_accuracy_counts_samples_that_are_what_was_asked_for(digits):
    wanted = digits.labels.clone()
    wanted[:50] = (wanted[:50] + 1) % 10
    found = class_accuracy(digits.x, wanted, "digits")
    assert found.value == pytest.approx(0.75, abs=0.02)
    unit = Dataset((digits.x + 1) / 2, data_range=(0, 1))
    assert class_accuracy(unit, wanted, "digits").value == found.value


def test_training_depends_on_its_arguments_alone(digits):
    torch.manual_seed(1)
    first, record = train_classifier(digits, digits, epochs=2, width=8)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second, _ = train_classifier(digits, digits, epochs=2, width=8)
    third, _ = train_classifier(digits, digits, epochs=2, width=8, seed=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.head.weight, third.head.weight)
    assert record["training_images"] == 200
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's stream is left where it was


def test_a_trained_classifier_survives_storage_exactly(digits, tmp_path):
    model, record = train_classifier(digits, digits, epochs=12, batch_size=20, width=8)
    assert record["held_out_accuracy"] > 0.5
    path = save_classifier(model, tmp_path / "mine", record)
    again = load_classifier(path)
    assert torch.equal(again(digits.x), model(digits.x))
    assert not any(p.requires_grad for p in again.parameters())
    assert json.loads(path.with_suffix(".json").read_text())["seed"] == 0
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"mine\.safetensors is damaged"):
        load_classifier(path)


def test_the_command_makes_a_bundled_classifier_and_refuses_unknown_names(tmp_path, monkeypatch, capsys):
    from trueward.metrics.classifier import __main__, training

    assert __main__.main(["digit"]) == 2
    assert "Did you mean 'digits'" in capsys.readouterr().err
    monkeypatch.setitem(training._EPOCHS, "digits", 1)
    record = training.make("digits", tmp_path)
    assert load_classifier(tmp_path / "digits").config == record["config"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 5, 17), (3, 64, 48), (1, 1, 9)])
def test_a_classifier_takes_images_of_any_shape(shape):
    model = Classifier(shape, 4, features=12).eval()
    assert model.features(torch.zeros(2, *shape)).shape == (2, 12)
    assert model(torch.zeros(2, *shape)).shape == (2, 4)


X = torch.zeros(4, 1, 8, 8)
WRONG = [
    (lambda: feature_extractor("digit"), "Did you mean 'digits'"),
    (lambda: feature_extractor("inception"), "not bundled"),
    (lambda: feature_extractor("inception:nowhere.pt"), "does not exist"),
    (lambda: feature_extractor("some/file.pt"), "does not exist"),
    (lambda: feature_extractor(3), "got int"),
    (lambda: feature_extractor(lambda x: x.sum())(X), r"tensor \(4, d\)"),
    (lambda: feature_extractor(lambda x: x.flatten(1) / 0)(X), "gave NaN"),
    (lambda: feature_extractor("digits")(X + float("nan")), "sample 0 holds NaN"),
    (lambda: feature_extractor("digits")(torch.zeros(4, 1, 9, 9)), r"shape \(1, 8, 8\)"),
    (lambda: load_classifier("mnits"), "Did you mean 'mnist'"),
    (lambda: load_classifier("a/b.safetensors"), "no classifier at"),
    (lambda: Classifier((8, 8), 10), "channels, height, width"),  # type: ignore[arg-type]
    (lambda: class_accuracy(X, [0, 1, 2, 3], None), "no classifier"),
    (lambda: class_accuracy(X, [0, 1], "digits"), r"shape \(4,\)"),
    (lambda: class_accuracy(X, [0, 1, 2, 10], "digits"), "0 ... 9"),
    (lambda: train_classifier(Dataset(X), Dataset(X)), "must have labels"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_call_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_file_that_is_not_torchscript_is_named_and_never_unpickled(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"model\.pt is not a TorchScript file") as caught:
        feature_extractor(path)
    assert "\n" not in str(caught.value)
