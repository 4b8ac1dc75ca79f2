"""YOLO's text becomes COCO's format. The pictures are 100 x 50 pixels."""

import pytest

from d2kd.data.convert import Split, convert_yolo


@pytest.fixture
def example(tmp_path, picture, text):
    text("data.yaml", "nc: 2", "names: [cow, cat]")

    def write(name, *lines):
        picture(f"images/{name}.png")
        text(f"labels/{name}.txt", *lines)

    return write


def convert(tmp_path, splits=(), names="data.yaml", **options):
    return convert_yolo(
        tmp_path / "images", tmp_path / "labels", tmp_path / names, splits, **options
    )


def test_boxes_ids_and_order_by_hand(tmp_path, example):
    example("a_10", "1 0.5 0.5 0.25 0.5", "", "0 0.25 0.75 0.5 0.5")
    example("a_2")
    found = convert(tmp_path).splits["train"]
    assert [(i["id"], i["file_name"]) for i in found["images"]] == [(1, "a_10.png"), (2, "a_2.png")]
    assert found["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [37.5, 12.5, 25, 25], "area": 625,
         "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 25, 50, 25], "area": 1250,
         "iscrowd": 0},
    ]  # fmt: skip
    assert found["categories"] == [{"id": 1, "name": "cow"}, {"id": 2, "name": "cat"}]


@pytest.mark.parametrize(
    "file, lines",
    [
        ("names.txt", ["cow", "cat", ""]),
        ("other.yml", ["names:", "  1: cat", "  0: cow"]),
    ],
)
def test_other_files_of_names(tmp_path, example, text, file, lines):
    example("a", "1 0.5 0.5 0.25 0.5")
    text(file, *lines)
    assert convert(tmp_path, names=file).splits == convert(tmp_path).splits


@pytest.mark.parametrize(
    "file, lines, message",
    [
        ("n.yaml", ["nc: 2"], "n.yaml: expected names: a list, .* found None"),
        ("n.yaml", ["names: {1: cow, 2: cat}"], "n.yaml: expected names: a list"),
        ("n.yaml", ["names: ["], "n.yaml: expected names of classes"),
        ("n.txt", ["cow", "cow"], "n.txt: expected different names of categories"),
    ],
)
def test_wrong_files_of_names_are_errors(tmp_path, example, text, file, lines, message):
    example("a")
    text(file, *lines)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, names=file)


def test_pictures_without_a_file_are_kept_and_counted(tmp_path, example, picture, text):
    example("b", "0 0.5 0.5 0.2 0.2")
    picture("images/a.png")
    text("labels/classes.txt", "cow", "cat")
    dataset = convert(tmp_path)
    assert [i["file_name"] for i in dataset.splits["train"]["images"]] == ["a.png", "b.png"]
    assert [a["image_id"] for a in dataset.splits["train"]["annotations"]] == [2]
    assert dataset.notes == ["1 images have no file of labels, and count as images without boxes"]


def test_a_folder_with_labels_of_other_pictures_is_an_error(tmp_path, example, picture):
    example("a_1")
    picture("images/a_2.png")
    with pytest.raises(ValueError, match="labels: expected files named as the images, found none"):
        convert(tmp_path, [Split("train", "2-2")])


@pytest.mark.parametrize(
    "line, message",
    [
        ("0 0.5 0.5 0.2", "expected 5 fields, class x y width height, found 4"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", "expected 5 fields, class x y width height, found 7"),
        ("2 0.5 0.5 0.2 0.2", "expected a class from 0 to 1, found '2'"),
        ("-1 0.5 0.5 0.2 0.2", "expected a class from 0 to 1, found '-1'"),
        ("0 0.5 0.5 0.2 nan", "expected a number, found 'nan'"),
        ("0 50 25 20 10", "expected fractions from 0 to 1, found 50 25 20 10"),
        ("0 0.5 0.5 0 0.2", "expected a box with a width and a height, found 0 x 10 pixels"),
        ("0 0.1 0.5 0.6 0.2", "expected a box inside the image .* found x -20 to 40"),
    ],
)
def test_wrong_lines_are_errors_with_file_and_line(tmp_path, example, line, message):
    example("a", "0 0.5 0.5 0.2 0.2", "", line)
    with pytest.raises(ValueError, match=rf"labels/a.txt, line 3: {message}"):
        convert(tmp_path)


def test_rounding_of_the_text_is_not_counted(tmp_path, example):
    example("a", "0 0.166666 0.5 0.333334 1")  # x from -0.000001
    dataset = convert(tmp_path)
    assert dataset.splits["train"]["annotations"][0]["bbox"][0] == 0 and dataset.notes == []
