"""Dataset: order, ranges, labels, batches, subsets and splits."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from trueward.data import Dataset, load_data


def test_digits_are_split_into_1500_and_297_that_make_up_all_1797():
    train, test, everything = (load_data("digits", split=s) for s in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1500, 297, 1797)
    rows, *parts = ({(*x.flatten().tolist(), int(y)) for x, y in zip(d.x, d.labels)} for d in (everything, train, test))
    assert parts[0] | parts[1] == rows
    assert not parts[0] & parts[1]


def test_digits_are_the_images_of_scikit_learn_on_17_levels():
    from sklearn.datasets import load_digits

    data = load_data("digits", split="all")
    assert (data.shape, data.levels, data.num_classes, data.data_range) == ((1, 8, 8), 17, 10, (-1.0, 1.0))
    images = torch.from_numpy(load_digits().images).float()
    assert torch.equal(data.x[:, 0], images / 8 - 1)
    assert torch.equal(data.labels, torch.from_numpy(load_digits().target))
    assert torch.equal(data.x.unique(), torch.linspace(-1, 1, 17))


def test_every_level_of_uint8_images_has_its_nearest_float_and_the_ends_are_exact():
    codes = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for low, high in ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)):
        x = load_data(codes, data_range=(low, high)).x.flatten()
        exact = low + (high - low) * np.arange(256) / 255
        assert np.array_equal(x.numpy(), exact.astype(np.float32))


@pytest.mark.parametrize(
    ("given", "shape"),
    [((5, 8, 8), (1, 8, 8)), ((5, 8, 8, 3), (3, 8, 8)), ((5, 3, 8, 8), (3, 8, 8)), ((5, 8, 8, 1), (1, 8, 8))],
)
def test_uint8_images_get_a_channel_axis_in_front(given, shape):
    images = np.random.default_rng(0).integers(0, 256, given, dtype=np.uint8)
    data = load_data(images)
    assert (data.shape, data.levels) == (shape, 256)
    expected = images[:, None] if len(given) == 3 else images if shape == given[1:] else images.transpose(0, 3, 1, 2)
    assert np.array_equal(((data.x.numpy() + 1) * 127.5).round(), expected)


def test_vectors_keep_their_values_and_have_no_range():
    x = torch.randn(20, 3) * 100
    data = load_data((x, np.arange(20) % 4))
    assert torch.equal(data.x, x)
    assert (data.data_range, data.levels, data.num_classes) == (None, None, 4)


def test_float64_and_integers_become_float32():
    assert load_data(np.ones((3, 2))).x.dtype == torch.float32
    assert load_data(torch.ones(3, 2, dtype=torch.int64)).x.dtype == torch.float32


def test_batches_items_and_subsets_agree():
    data = load_data("digits")
    rows = [7, 3, 1400]
    batch, subset = data.batch(rows), data.subset(rows)
    assert batch["x"].shape == (3, 1, 8, 8)
    assert batch["class_labels"].dtype == torch.int64
    for i, row in enumerate(rows):
        assert torch.equal(data[row]["x"], batch["x"][i])
        assert torch.equal(data[row]["class_labels"], data.labels[row])
    assert torch.equal(subset.x, batch["x"])
    assert torch.equal(subset.labels, batch["class_labels"])
    assert torch.equal(data[-1]["x"], data.x[-1])
    threes = data.subset(data.labels == 3)
    assert set(threes.labels.tolist()) == {3}
    assert threes.num_classes == 10


def test_without_labels_a_batch_holds_x_alone():
    assert set(load_data("digits", labels=False).batch([0])) == {"x"}
    assert load_data("digits", labels=False).num_classes is None


def test_a_torch_data_loader_reads_it_and_it_can_be_sent_to_workers():
    data = load_data("digits", limit=10)
    batches = list(DataLoader(data, batch_size=4))
    assert torch.equal(torch.cat([b["x"] for b in batches]), data.x)
    assert torch.equal(torch.cat([b["class_labels"] for b in batches]), data.labels)
    assert torch.equal(pickle.loads(pickle.dumps(data)).x, data.x)


def test_a_split_is_random_disjoint_complete_in_order_and_the_same_every_time():
    data = Dataset(torch.arange(100.0)[:, None])
    train, held_out = data.split(0.2, seed=1)
    assert (len(train), len(held_out)) == (80, 20)
    values = torch.cat([train.x, held_out.x]).flatten()
    assert torch.equal(values.sort().values, torch.arange(100.0))
    assert bool((train.x.flatten().diff() > 0).all())
    assert not torch.equal(held_out.x.flatten(), torch.arange(80.0, 100.0))
    assert torch.equal(data.split(0.2, seed=1)[1].x, held_out.x)
    assert not torch.equal(data.split(0.2, seed=2)[1].x, held_out.x)


def test_a_split_never_leaves_a_part_empty():
    assert [len(part) for part in Dataset(torch.zeros(2, 1)).split(0.01)] == [1, 1]


def test_its_description_is_json_and_loads_it_again():
    data = load_data("digits", limit=50, split="test")
    config = json.loads(json.dumps(data.to_config()))
    again = load_data(**config["load"])
    assert torch.equal(again.x, data.x)
    assert again.to_config() == data.to_config()
    assert load_data(torch.zeros(2, 3)).to_config()["load"] is None


def test_the_fingerprint_tells_data_labels_and_range_apart():
    x = torch.rand(10, 3)
    prints = {
        Dataset(x).fingerprint,
        Dataset(x * 0.5).fingerprint,
        Dataset(x, torch.zeros(10)).fingerprint,
        Dataset(x, torch.ones(10)).fingerprint,
        Dataset(x, data_range=(0, 1)).fingerprint,
    }
    assert len(prints) == 5
    assert Dataset(x.clone()).fingerprint in prints


WRONG = [
    (lambda: load_data(torch.tensor([[1.0], [float("nan")]])), "sample 1 holds NaN"),
    (lambda: load_data(torch.tensor([[1.0], [float("inf")]])), "finite"),
    (lambda: load_data(torch.randn(5, 1, 4, 4) * 10), "data_range"),
    (lambda: load_data(torch.rand(5, 1, 4, 4)), "state their range"),
    (lambda: load_data(torch.rand(5, 1, 4, 4) * 255, data_range=(0, 1)), "values lie in"),
    (lambda: load_data(torch.rand(5)), "two axes"),
    (lambda: load_data(torch.zeros(0, 3)), "empty"),
    (lambda: load_data(torch.zeros(3, 2), data_range=(1, -1)), "low < high"),
    (lambda: load_data(torch.zeros(3, 2), data_range="unit"), "auto"),
    (lambda: load_data(np.zeros((3, 8, 8), np.uint8), data_range=None), "cannot be None"),
    (lambda: load_data(np.zeros((3, 8, 8, 4), np.uint8)), "1 or 3 channels"),
    (lambda: load_data((torch.zeros(3, 2), [0, 1])), r"shape \(3,\)"),
    (lambda: load_data((torch.zeros(3, 2), [0, 1, -1])), "got -1"),
    (lambda: load_data((torch.zeros(3, 2), [0, 1, 5]), num_classes=3), "0 ... 2"),
    (lambda: load_data((torch.zeros(3, 2), [0.5, 1, 2])), "whole numbers"),
    (lambda: load_data(torch.zeros(3, 2), num_classes=3), "no labels"),
    (lambda: load_data(torch.zeros(3, 2), split="test"), "no test split"),
    (lambda: load_data(torch.zeros(3, 2), size=4), "applies to images"),
    (lambda: load_data(torch.zeros(3, 2), channels=1), "does not apply"),
    (lambda: load_data({"x": 1}), "got dict"),
    (lambda: load_data("digit"), "Did you mean 'digits'"),
    (lambda: load_data("digits", split="tset"), "Did you mean 'test'"),
    (lambda: load_data("digits", size=32), "256 levels"),
    (lambda: load_data("digits", limit=0), "at least 1"),
    (lambda: load_data("no/such/folder"), "do not exist"),
    (lambda: Dataset(torch.zeros(3, 2)).batch([3]), "got 3"),
    (lambda: Dataset(torch.zeros(3, 2)).subset([]), "at least one"),
    (lambda: Dataset(torch.zeros(3, 2)).subset(torch.tensor([True])), "mask"),
    (lambda: Dataset(torch.zeros(3, 2)).split(1.0), "fraction"),
    (lambda: Dataset(torch.zeros(1, 2)).split(), "one sample"),
    (lambda: Dataset(torch.zeros(3, 2, dtype=torch.complex64)), "real"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_call_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
