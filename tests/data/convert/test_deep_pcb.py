"""DeepPCB's lists and text become COCO's format."""

import pytest

from d2kd.data.convert import convert_deep_pcb


@pytest.fixture
def boards(tmp_path, picture, text):
    """Eleven boards in trainval.txt, in another order than by name, and one in test.txt."""
    names = [f"g/1/{i}" for i in (30, 4, 7, 21, 5, 1, 2, 3, 9, 8, 6)]
    for name in [*names, "g/1/99"]:
        picture(f"PCBData/{name}_test.jpg", 640, 640)
        text(f"PCBData/{name.replace('/1/', '/1_not/')}.txt")
    text("PCBData/g/1_not/30.txt", "10 20 40 60 3", "0 0 640 1 6")
    pairs = [f"{name}.jpg {name.replace('/1/', '/1_not/')}.txt" for name in [*names, "g/1/99"]]
    text("PCBData/trainval.txt", *pairs[:11])
    text("PCBData/test.txt", pairs[11])
    return tmp_path


def numbers(split):
    return [int(i["file_name"].split("/")[2].removesuffix("_test.jpg")) for i in split["images"]]


def test_boxes_ids_and_order_by_hand(boards):
    splits = convert_deep_pcb(boards).splits
    assert list(splits) == ["train", "test"]
    assert splits["train"]["images"][0] == {
        "id": 1, "file_name": "g/1/30_test.jpg", "width": 640, "height": 640,
    }  # fmt: skip
    assert numbers(splits["train"]) == [30, 4, 7, 21, 5, 1, 2, 3, 9, 8, 6]
    assert splits["train"]["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40], "area": 1200,
         "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 6, "bbox": [0, 0, 640, 1], "area": 640,
         "iscrowd": 0},
    ]  # fmt: skip
    assert numbers(splits["test"]) == [99] and splits["test"]["annotations"] == []
    assert splits["test"]["categories"][2:4] == [
        {"id": 3, "name": "mousebite"},
        {"id": 4, "name": "spur"},
    ]


def test_every_fifth_line_is_for_validation(boards):
    splits = convert_deep_pcb(boards / "PCBData", val_every=5).splits
    assert numbers(splits["val"]) == [5, 8]
    assert numbers(splits["train"]) == [30, 4, 7, 21, 1, 2, 3, 9, 6]
    assert [i["id"] for i in splits["train"]["images"]] == list(range(1, 10))


@pytest.mark.parametrize("val_every", [1, 0, -5])
def test_val_every_must_leave_something(boards, val_every):
    with pytest.raises(ValueError, match=rf"val_every: expected 2 or more, found {val_every}"):
        convert_deep_pcb(boards, val_every=val_every)


@pytest.mark.parametrize(
    "line, message",
    [
        ("1 2 3 4", "expected 5 fields, x1 y1 x2 y2 type, found 4"),
        ("1 2 30 40 7", "expected a type from 1 to 6, found 7"),
        ("1 2 30 40 0", "expected a type from 1 to 6, found 0"),
        ("1 2 30 forty 1", "expected a number, found 'forty'"),
        ("1 2 30 2 1", "expected a box with a width and a height, found 29 x 0 pixels"),
        ("600 2 650 40 1", "expected a box inside the image of 640 x 640 pixels"),
    ],
)
def test_wrong_lines_are_errors_with_file_and_line(boards, text, line, message):
    text("PCBData/g/1_not/7.txt", "1 2 3 4 5", line)
    with pytest.raises(ValueError, match=rf"1_not/7.txt, line 2: {message}"):
        convert_deep_pcb(boards)


def test_missing_files_are_errors(boards):
    (boards / "PCBData/g/1_not/7.txt").unlink()
    (boards / "PCBData/g/1/4_test.jpg").unlink()
    with pytest.raises(ValueError) as error:
        convert_deep_pcb(boards)
    assert "7.txt: expected a file to read, found: No such file" in str(error.value)
    assert "4_test.jpg: expected an image, found: " in str(error.value)


def test_wrong_lists_are_errors(boards, text):
    text("PCBData/test.txt", "g/1/30.jpg g/1_not/30.txt", "g/1/99.jpg")
    with pytest.raises(ValueError) as error:
        convert_deep_pcb(boards)
    assert "test.txt, line 1: expected each image once, found g/1/30.jpg again" in str(error.value)
    assert "test.txt, line 2: expected 2 fields, image boxes, found 1" in str(error.value)


def test_another_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"trainval.txt: .*Give the folder that has trainval.txt"):
        convert_deep_pcb(tmp_path)
