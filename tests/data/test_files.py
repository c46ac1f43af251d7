"""Data from files: NumPy, folders of pictures, parquet, Hugging Face datasets, MNIST."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trueward.data import load_data
from trueward.data.images import fit

SHARED = Path(os.environ.get("TRUEWARD_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def pixels(x: torch.Tensor) -> np.ndarray:
    return ((x.numpy() + 1) * 127.5).round().astype(np.uint8)


def picture(seed: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


# --- NumPy ------------------------------------------------------------------------------------------------------------


def test_an_archive_gives_its_splits(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (7, 4, 4), dtype=np.uint8), np.arange(7) % 3
    np.savez(tmp_path / "d.npz", x_train=x[:5], y_train=y[:5], x_test=x[5:], y_test=y[5:])
    for split, rows in (("train", slice(0, 5)), ("test", slice(5, 7)), ("all", slice(0, 7))):
        data = load_data(tmp_path / "d.npz", split=split)
        assert np.array_equal(pixels(data.x)[:, 0], x[rows])
        assert data.labels.tolist() == y[rows].tolist()


def test_an_archive_of_x_and_y_a_plain_array_and_named_arrays(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6))
    np.savez(tmp_path / "b.npz", points=x, kind=np.arange(6) % 2)
    np.save(tmp_path / "c.npy", x)
    assert load_data(tmp_path / "a.npz").num_classes == 6
    named = load_data(tmp_path / "b.npz", x_key="points", labels_key="kind")
    assert named.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(load_data(str(tmp_path / "c.npy")).x, torch.from_numpy(x).float())
    with pytest.raises(ValueError, match="points"):
        load_data(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="Did you mean 'points'"):
        load_data(tmp_path / "b.npz", x_key="point")
    with pytest.raises(ValueError, match="no test split"):
        load_data(tmp_path / "a.npz", split="test")


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_pickled_objects_are_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("bomb.npz", x=np.array([Bomb()], dtype=object))
    np.save("bomb.npy", np.array([Bomb()], dtype=object))
    Path("renamed.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.npz", "bomb.npy", "renamed.npy"):
        with pytest.raises(ValueError, match=r"never unpickled"):
            load_data(name)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_truncated_archive_is_named(tmp_path, keep):
    np.savez(tmp_path / "d.npz", x=np.zeros((50, 3)))
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"d\.npz"):
        load_data(tmp_path / "d.npz")


def test_an_unknown_kind_of_file_is_named(tmp_path):
    (tmp_path / "d.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"d\.csv is neither"):
        load_data(tmp_path / "d.csv")


def test_uint8_arrays_are_resized_like_pictures():
    images = np.stack([np.array(picture(i, (28, 28), "L")) for i in range(3)])
    data = load_data(images, size=16)
    assert data.shape == (1, 16, 16)
    expected = np.array(Image.fromarray(images[1]).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels(data.x)[1, 0], expected)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """cat/ with two pictures, dog/ with three, written in an order that is not the sorted one."""
    for i, name in enumerate(("dog/b.png", "cat/2.png", "dog/sub/a.png", "cat/10.png", "dog/a.png")):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    return tmp_path / "pets"


def test_a_folder_is_sorted_and_its_folders_are_classes(folder):
    data = load_data(folder)
    order = [3, 1, 4, 0, 2]
    assert np.array_equal(pixels(data.x), np.stack([np.array(picture(i)).transpose(2, 0, 1) for i in order]))
    assert data.class_names == ["cat", "dog"]
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert (data.shape, data.levels, data.name) == ((3, 5, 6), 256, "pets")
    assert torch.equal(data.subset([4, 0]).x, data.x[[4, 0]])
    assert torch.equal(load_data(**data.to_config()["load"]).x, data.x)


def test_pictures_beside_folders_are_not_classes(folder):
    picture(9).save(folder / "stray.png")
    assert load_data(folder).labels is None
    assert load_data(folder, labels=[0, 1, 2, 0, 1, 2]).num_classes == 3


def test_train_and_test_folders_are_splits(tmp_path):
    for name, seeds in (("train", (0, 1)), ("test", (2,))):
        for i in seeds:
            path = tmp_path / name / ("even" if i % 2 == 0 else "odd") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(i).save(path)
    assert [len(load_data(tmp_path, split=s)) for s in ("train", "test", "all")] == [2, 1, 3]
    assert load_data(tmp_path, split="all").labels.tolist() == [0, 1, 0]


def test_only_what_is_asked_for_is_decoded_and_then_kept(folder, monkeypatch):
    from trueward.data.pictures import Files

    decoded = []
    original = Files.decode
    monkeypatch.setattr(Files, "decode", lambda self, i, *rest: decoded.append(i) or original(self, i, *rest))
    data = load_data(folder)
    assert decoded == []
    data.batch([3, 1, 3])
    data.batch([1])
    assert sorted(set(decoded)) == [1, 3]
    assert decoded.count(1) == 1
    # a worker process is sent no pictures
    sent = pickle.dumps(data)
    assert b"_kept" not in sent
    assert torch.equal(pickle.loads(sent).batch([1])["x"], data.batch([1])["x"])
    assert decoded.count(1) == 2


def test_pictures_of_different_sizes_need_a_size(folder):
    picture(7, (9, 4)).save(folder / "cat" / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png is 9x4.*size="):
        load_data(folder)
    assert load_data(folder, size=4).x.shape == (6, 3, 4, 4)


def test_the_middle_of_a_picture_is_kept():
    wide = np.zeros((4, 10), np.uint8)
    wide[:, 3:7] = np.arange(16).reshape(4, 4) * 10
    assert np.array_equal(fit(Image.fromarray(wide), 4, 1)[0].numpy(), wide[:, 3:7])
    assert np.array_equal(fit(Image.fromarray(wide.T), 4, 1)[0].numpy(), wide.T[3:7])


def test_colour_decides_the_channels(folder):
    assert load_data(folder, channels=1).shape == (1, 5, 6)
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert load_data(folder).shape == (1, 5, 6)
    picture(0).save(folder / "dog" / "z.png")
    assert load_data(folder).shape == (3, 5, 6)


def test_transparency_lies_over_white_and_16_bit_grey_is_scaled():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert fit(clear, None, 3).unique().tolist() == [255]
    deep = Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16))
    assert fit(deep, None, 1).flatten().tolist() == [0, 100, 200, 255]


def test_photographs_are_turned_the_right_way_up(tmp_path):
    upright = picture(0, (6, 4), "L")
    exif = Image.Exif()
    exif[274] = 6  # stored a quarter turn anticlockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    data = load_data(tmp_path)
    assert data.shape == (1, 4, 6)
    assert np.array_equal(pixels(data.x)[0, 0], np.array(upright))


def test_a_file_that_is_no_picture_is_named_or_skipped(folder):
    (folder / "cat" / "notes.txt").write_text("no picture")
    (folder / ".hidden").write_text("left alone")
    with pytest.raises(ValueError, match=r"notes\.txt is not a readable image") as caught:
        load_data(folder)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=r"Skipped 1 file.*notes\.txt"):
        assert len(load_data(folder, skip_unreadable=True)) == 5


def test_a_truncated_picture_is_named_when_it_is_read_or_skipped(folder):
    path = folder / "dog" / "a.png"
    path.write_bytes(path.read_bytes()[:100])
    data = load_data(folder)
    assert data.batch([0])["x"].shape == (1, 3, 5, 6)
    with pytest.raises(ValueError, match=r"a\.png is not a readable image"):
        data.batch([2])
    with pytest.warns(UserWarning, match="Skipped 1"):
        assert len(load_data(folder, skip_unreadable=True)) == 4


def test_an_empty_folder_and_a_missing_split_are_told(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        load_data(tmp_path / "empty")
    with pytest.raises(ValueError, match="no test split"):
        load_data(folder, split="test")
    with pytest.raises(ValueError, match="Did you mean 'channels'"):
        load_data(folder, chanels=1)
    with pytest.raises(ValueError, match="channels must be 1"):
        load_data(folder, channels=2)


# --- tables -----------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, seeds: range, labels: list, column: str = "image") -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [{"bytes": png(picture(i)), "path": None} for i in seeds]
    pq.write_table(pa.table({column: images, "label": labels}), path)


def test_parquet_holds_encoded_pictures_and_labels(tmp_path):
    write_parquet(tmp_path / "d.parquet", range(4), [2, 0, 1, 2])
    data = load_data(tmp_path / "d.parquet")
    assert np.array_equal(pixels(data.x), np.stack([np.array(picture(i)).transpose(2, 0, 1) for i in range(4)]))
    assert data.labels.tolist() == [2, 0, 1, 2]
    assert load_data(tmp_path / "d.parquet", labels=False).labels is None
    assert torch.equal(pickle.loads(pickle.dumps(data)).batch([1])["x"], data.batch([1])["x"])


def test_text_labels_are_numbered_in_sorted_order(tmp_path):
    write_parquet(tmp_path / "d.parquet", range(3), ["dog", "cat", "dog"], column="photo")
    with pytest.raises(ValueError, match="image="):
        load_data(tmp_path / "d.parquet")
    data = load_data(tmp_path / "d.parquet", image="photo")
    assert (data.labels.tolist(), data.class_names) == ([1, 0, 1], ["cat", "dog"])
    with pytest.raises(ValueError, match="Did you mean 'label'"):
        load_data(tmp_path / "d.parquet", image="photo", labels="lable")


def test_a_folder_of_parquet_files_has_splits(tmp_path):
    write_parquet(tmp_path / "train-00001-of-2.parquet", range(2, 4), [1, 1])
    write_parquet(tmp_path / "train-00000-of-2.parquet", range(2), [0, 0])
    write_parquet(tmp_path / "test.parquet", range(4, 5), [1])
    assert load_data(tmp_path).labels.tolist() == [0, 0, 1, 1]
    assert len(load_data(tmp_path, split="test")) == 1
    assert len(load_data(tmp_path, split="all")) == 5


def test_decoded_pictures_and_vectors_in_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    pq.write_table(pa.table({"image": images.tolist()}), tmp_path / "i.parquet")
    pq.write_table(pa.table({"x": [[0.5, 2.0], [1.0, -3.0]]}), tmp_path / "v.parquet")
    pq.write_table(pa.table({"x": [[0.5, 2.0], [1.0]]}), tmp_path / "ragged.parquet")
    assert np.array_equal(pixels(load_data(tmp_path / "i.parquet").x)[:, 0], images)
    assert load_data(tmp_path / "v.parquet").x.tolist() == [[0.5, 2.0], [1.0, -3.0]]
    with pytest.raises(ValueError, match="several lengths"):
        load_data(tmp_path / "ragged.parquet")


def test_a_damaged_table_or_row_is_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "a.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read") as caught:
        load_data(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)
    cells = [{"bytes": png(picture(0)), "path": None}, {"bytes": b"junk", "path": None}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "b.parquet")
    data = load_data(tmp_path / "b.parquet")
    for row, reason in ((1, "Row 1"), (2, "Row 2.*neither bytes nor a path")):
        with pytest.raises(ValueError, match=reason):
            data.batch([row])


def test_hugging_face_datasets_give_the_same_pictures(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [picture(i) for i in range(3)]
    table = datasets.Dataset.from_dict({"img": images, "label": [1, 0, 1]}, features=features)
    expected = np.stack([np.array(image).transpose(2, 0, 1) for image in images])
    both = datasets.DatasetDict({"train": table, "test": table.select([0])})
    both.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "d.parquet"))
    for data in (load_data(table), load_data(both), load_data(tmp_path / "saved"), load_data(tmp_path / "d.parquet")):
        assert np.array_equal(pixels(data.x), expected)
        assert data.labels.tolist() == [1, 0, 1]
        assert data.class_names == ["cat", "dog"]
    assert len(load_data(both, split="test")) == 1
    assert len(load_data(tmp_path / "saved", split="all")) == 4
    with pytest.raises(ValueError, match="no test"):
        load_data(datasets.DatasetDict({"train": table}), split="test")


def test_hugging_face_vectors_become_vectors():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0, 4.0]], "y": [0, 1]})
    data = load_data(table)
    assert (data.x.tolist(), data.labels.tolist()) == ([[1.0, 2.0], [3.0, 4.0]], [0, 1])


# --- real data --------------------------------------------------------------------------------------------------------


def test_missing_mnist_says_where_it_was_looked_for(tmp_path, monkeypatch):
    from trueward.data import builtin

    monkeypatch.setenv("TRUEWARD_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(builtin, "mnist_places", lambda: [tmp_path / "nowhere" / "mnist.npz"])
    with pytest.raises(ValueError, match=r"nowhere.mnist\.npz.*TRUEWARD_DATA"):
        load_data("mnist")


def test_mnist_is_found_by_the_environment_first(tmp_path, monkeypatch):
    images = np.full((2, 28, 28), 7, np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=[1, 2], x_test=images[:1], y_test=[3])
    monkeypatch.setenv("TRUEWARD_DATA", str(tmp_path))
    data = load_data("mnist")
    assert (len(data), data.shape, data.levels, data.num_classes) == (2, (1, 28, 28), 256, 10)
    assert pixels(data.x).max() == 7
    assert load_data("mnist", size=32).shape == (1, 32, 32)


@pytest.mark.skipif(not (SHARED / "mnist.npz").is_file(), reason=f"MNIST is not at {SHARED}")
def test_real_mnist_is_complete():
    stored = np.load(SHARED / "mnist.npz")
    data = load_data("mnist", split="test")
    assert len(data) == 10000
    assert np.array_equal(pixels(data.x)[:, 0], stored["x_test"])
    assert np.array_equal(data.labels.numpy(), stored["y_test"])


@pytest.mark.skipif(not (SHARED / "cifar10-jpeg").is_dir(), reason=f"CIFAR-10 is not at {SHARED}")
def test_real_cifar_10_loads_from_its_folder():
    data = load_data(SHARED / "cifar10-jpeg", split="test")
    assert (len(data), data.shape, data.num_classes, data.levels) == (10000, (3, 32, 32), 10, 256)
    assert data.labels.bincount().tolist() == [1000] * 10
    x = data.batch(range(0, 10000, 100))["x"]
    assert float(x.min()) == -1.0
    assert float(x.max()) == 1.0
    assert 0.3 < float(x.std()) < 0.7
