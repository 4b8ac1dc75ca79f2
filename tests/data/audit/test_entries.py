"""What one entry of a COCO file says."""

import math

import pytest

from d2kd.data.audit.entries import (
    is_category,
    is_crowd,
    is_image,
    is_usable,
    lacks_value,
    refers,
    size_of,
)

STRANGE = [None, 3, "text", [], {}]


@pytest.mark.parametrize("entry", STRANGE)
def test_entries_of_all_kinds_are_no_error(entry):
    assert not is_image(entry) and not is_category(entry) and not refers(entry)
    assert lacks_value(entry, ("id",))


@pytest.mark.parametrize("number", [1, "a", 1.0])
def test_ids_are_numbers_or_texts(number):
    assert is_image({"id": number, "file_name": "a.png"})
    assert refers({"image_id": number, "category_id": 2})
    assert not is_image({"id": [number], "file_name": "a.png"})
    assert not refers({"image_id": {"is": number}, "category_id": 2})


def test_an_image_has_a_file():
    assert not is_image({"id": 1, "file_name": ""}) and not is_image({"id": 1})
    assert not lacks_value({"id": 0, "file_name": "a"}, ("id", "file_name"))
    assert lacks_value({"id": 0, "file_name": ""}, ("id", "file_name"))


@pytest.mark.parametrize(
    "value, size",
    [(7, 7), (7.9, 7), (0, 0), (-3, 0), (None, 0), ("7", 0), (math.nan, 0), (math.inf, 0)],
)
def test_a_size_is_a_number_above_0(value, size):
    assert size_of({"width": value}, "width") == size


@pytest.mark.parametrize(
    "value, area, iscrowd",
    [
        (0, True, True),
        (2.5, True, True),
        (-1, False, True),
        (math.inf, False, True),
        (math.nan, False, True),
        ("1", False, False),
        (None, False, False),
    ],
)
def test_what_pycocotools_can_use(value, area, iscrowd):
    assert is_usable("area", value) == area
    assert is_usable("iscrowd", value) == iscrowd


@pytest.mark.parametrize("value, crowd", [(1, True), (0, False), (" True", True), ("0", False)])
def test_crowds_are_numbers_or_texts(value, crowd):
    assert is_crowd({"iscrowd": value}) == crowd
    assert not is_crowd({})
