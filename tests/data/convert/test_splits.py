"""Images are divided by lists and by numbers."""

from pathlib import Path

import pytest

from d2kd.data.convert.splits import Pair, Split, divide
from d2kd.data.convert.text import Problems

KEYS = ["a/x_1", "a/x_2", "b_12", "b_3_v1", "b_3_v22", "plain", "t.mp4#t=7"]
PAIRS = [Pair(key, Path(f"{key}.jpg"), Path(f"{key}.xml")) for key in KEYS]


def keys(*splits, pairs=PAIRS):
    problems = Problems()
    divided, notes = divide(pairs, [Split.parse(s) for s in splits], problems)
    problems.check()
    return {name: [pair.key for pair in found] for name, found in divided.items()}, notes


def test_without_splits_all_images_are_train():
    assert keys() == ({"train": KEYS}, [])


def test_numbers_are_the_last_integer_of_the_name():
    divided, notes = keys("low=1-2", "high=7-22")
    assert divided == {
        "low": ["a/x_1", "a/x_2", "b_3_v1"],
        "high": ["b_12", "b_3_v22", "t.mp4#t=7"],
    }
    assert notes == ["1 images are in no split and were left out"]


def test_lists_have_names_with_or_without_suffix(tmp_path):
    list_file = tmp_path / "train.txt"
    list_file.write_text("t.mp4#t=7\n\n./b_12.jpg\na/x_2\r\n")
    divided, notes = keys(f"train={list_file}", "val=1-1")
    assert divided["train"] == ["a/x_2", "b_12", "t.mp4#t=7"]  # the order of the images
    assert divided["val"] == ["a/x_1", "b_3_v1"]
    assert notes == ["2 images are in no split and were left out"]


def test_wrong_lines_of_a_list_are_errors(tmp_path):
    list_file = tmp_path / "train.txt"
    list_file.write_text("plain\n\nnobody\nplain.jpg\n")
    with pytest.raises(ValueError) as error:
        keys(f"train={list_file}")
    assert "train.txt, line 3: expected the name of an image, found 'nobody'" in str(error.value)
    assert "line 4: expected each image once, found 'plain.jpg' again" in str(error.value)


@pytest.mark.parametrize(
    "splits, message",
    [
        (["a=1-2", "b=2-9"], "splits a and b: expected no image in both, found 'a/x_2'"),
        (["a=1-2", "a=3-9"], "split a: expected it once, found it twice"),
        (["a=100-200"], "split a: expected images with numbers from 100 to 200, found none"),
        (["a=nowhere.txt"], "nowhere.txt: expected a file to read, .*NAME=A-B"),
        (["train"], "expected NAME=FILE or NAME=A-B"),
        (["annotations=1-2"], "expected NAME=FILE or NAME=A-B"),
        (["../up=1-2"], "expected NAME=FILE or NAME=A-B"),
    ],
)
def test_wrong_splits_are_errors(splits, message):
    with pytest.raises(ValueError, match=message):
        keys(*splits)


def test_labels_without_an_image_matter_in_a_split_only():
    pairs = [*PAIRS, Pair("c_50", None, Path("c_50.xml"))]
    assert keys("low=1-2", pairs=pairs)[1] == ["4 images are in no split and were left out"]
    with pytest.raises(ValueError, match=r"c_50.xml: expected an image c_50, found none"):
        keys("all=1-50", pairs=pairs)
