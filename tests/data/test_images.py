"""Pictures of samples: the inverse of loading, and grids whose every pixel is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from trueward.data import grid, load_data, save_grid, to_images


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 0.7)])
def test_to_images_undoes_loading(data_range):
    images = np.arange(256 * 3, dtype=np.int64).reshape(3, 16, 16).astype(np.uint8)
    images = np.stack([images, 255 - images]).transpose(0, 2, 3, 1)
    data = load_data(images, data_range=data_range)
    assert np.array_equal(to_images(data.x, data_range), images)


def test_values_beyond_the_range_are_cut():
    x = torch.tensor([[[-5.0, -1.0], [1.0, 5.0]]])
    assert to_images(x).flatten().tolist() == [0, 0, 255, 255]


def test_digits_become_17_levels_of_grey():
    images = to_images(load_data("digits").x)
    assert images.shape == (1500, 8, 8, 1)
    assert np.unique(images).tolist() == [round(255 * k / 16) for k in range(17)]


def test_a_grid_holds_every_pixel_enlarged_by_whole_numbers(tmp_path):
    x = load_data("digits", limit=7).x
    path = save_grid(x, tmp_path / "new" / "grid.png", columns=3)
    sheet = np.array(Image.open(path))
    assert sheet.ndim == 2
    assert sheet.shape == ((3 * 9 - 1) * 4, (3 * 9 - 1) * 4)
    images = to_images(x)[..., 0]
    for i in range(7):
        top, left = (i // 3) * 9 * 4, (i % 3) * 9 * 4
        cell = sheet[top : top + 32, left : left + 32]
        assert np.array_equal(cell, images[i].repeat(4, 0).repeat(4, 1))
    assert list((tmp_path / "new").iterdir()) == [path]


def test_large_images_are_not_enlarged_and_colours_stay():
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    sheet = grid(images, columns=2)
    assert sheet.shape == (40, 61, 3)
    assert np.array_equal(sheet[:, 31:], images[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_images(torch.zeros(4, 2, 8, 8)), "1 or 3 channels"),
        (lambda: to_images(torch.zeros(4, 8)), "shape"),
        (lambda: to_images(torch.full((1, 8, 8), float("nan"))), "NaN"),
        (lambda: grid(np.zeros((1, 8, 8, 1), np.uint8), columns=0), "columns"),
    ],
)
def test_a_wrong_picture_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
