import sys

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch

from d2kd.resolution import (
    check_fits_square,
    check_image_size,
    fit_into_square,
    resample,
    resize_image,
    shortest_edge_size,
    square_size,
)
from tests import toys, vitdet


def ramp(rows: int, columns: int) -> torch.Tensor:
    """(1, 2, rows, columns): y and x of the centers of cells, in cells."""
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    return torch.stack([y, x])[None]


def test_maps_are_sampled_at_the_same_places_of_the_image():
    maps = ramp(12, 20).repeat(2, 1, 1, 1)
    found = resample(maps, [(2.0, 2.0), (1.5, 1.25)], (5, 8))
    # Inside the map, a linear function is interpolated exactly.
    torch.testing.assert_close(found[0], 2 * ramp(5, 8)[0])
    torch.testing.assert_close(found[1, 0], 1.5 * ramp(5, 8)[0, 0])
    torch.testing.assert_close(found[1, 1], 1.25 * ramp(5, 8)[0, 1])


def test_a_scale_of_one_keeps_the_cells():
    maps = torch.randn(1, 3, 6, 7)
    torch.testing.assert_close(resample(maps, [(1.0, 1.0)], (5, 7)), maps[..., :5, :])


def test_the_last_cells_are_repeated_beyond_the_map():
    maps = torch.arange(3.0).expand(1, 1, 2, 3)
    found = resample(maps, [(1.0, 1.0)], (2, 5))
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.0, 1.0, 2.0, 2.0, 2.0]))


def test_half_precision_does_not_move_the_grid():
    maps = ramp(100, 100)
    expected = resample(maps, [(1.7, 1.7)], (58, 58))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resample(maps, [(1.7, 1.7)], (58, 58)), expected)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (30, 200)])
def test_the_size_is_that_of_resize_shortest_edge(size):
    resized = T.ResizeShortestEdge([96, 96], 120).get_transform(np.empty((*size, 3)))
    assert shortest_edge_size(size, (96, 120)) == (resized.new_h, resized.new_w)


@pytest.mark.parametrize(
    "value, expected",
    [(None, None), (800, (800, sys.maxsize)), ([800, 1333], (800, 1333))],
)
def test_sizes_of_configs(value, expected):
    assert check_image_size("Teacher.image_size", value) == expected


@pytest.mark.parametrize("value", [0, 1.5, "800", (800,), (800, 600), (800, None)])
def test_impossible_sizes_are_named(value):
    with pytest.raises(ValueError, match=r"Teacher\.image_size: expected"):
        check_image_size("Teacher.image_size", value)


@pytest.mark.parametrize("size, expected", [((100, 50), (64, 32)), ((10, 128), (5, 64))])
def test_a_large_image_shrinks_into_the_square(size, expected):
    image = torch.full((3, *size), 7, dtype=torch.uint8)
    found = fit_into_square(image, 64)
    assert tuple(found.shape) == (3, *expected)
    torch.testing.assert_close(found, torch.full((3, *expected), 7.0))


@pytest.mark.parametrize("square", [0, 64])
def test_an_image_that_fits_stays(square):
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    assert fit_into_square(image, square) is image
    assert resize_image(image, (64, 64)) is image


def test_the_square_of_detectors():
    assert square_size(vitdet.rcnn()) == vitdet.SQUARE
    assert square_size(toys.retinanet()) == 0


def test_detectron2_crops_a_large_image_and_this_refuses_it():
    model = vitdet.rcnn().eval()
    inputs = [{"image": torch.zeros(3, 80, 40), "file_name": "large.png"}]
    assert model.preprocess_image(inputs).tensor.shape[-2:] == (64, 64)  # 16 rows are lost
    with pytest.raises(ValueError, match=r"large\.png: expected at most 64 x 64 .*found 80 x 40"):
        check_fits_square(model, inputs)
    check_fits_square(model, [{"image": torch.zeros(3, 64, 40)}])
    check_fits_square(toys.retinanet(), inputs)
