"""`d2kd data`: what the user gives, and what the user reads."""

import json

import pytest
from PIL import Image

from d2kd import cli
from d2kd.tools import data


@pytest.fixture
def herd(tmp_path, monkeypatch):
    """Three pictures with YOLO's and VOC's labels, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "labels", "xml"):
        (tmp_path / folder).mkdir()
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>50</xmax><ymax>10</ymax>"
    thing = f"<object><name>cow</name><difficult>1</difficult><bndbox>{box}</bndbox></object>"
    for i, name in enumerate(["a_1", "a_2", "a_3"]):
        Image.new("L", (100, 10)).save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.25 0.5 0.5 1\n" * i)
        (tmp_path / "xml" / f"{name}.xml").write_text(f"<annotation>{thing * i}</annotation>")
    (tmp_path / "names.txt").write_text("cow\n")
    return tmp_path


YOLO = ["yolo", "--images", "images", "--labels", "labels", "--names", "names.txt"]
VOC = ["voc", "--images", "images", "--annotations", "xml"]


def test_a_run_says_what_it_made_and_how_to_name_it(herd, capsys):
    call = [*YOLO, "--output", "datasets/herd", "--split", "train=1-1", "--split", "val=3-3"]
    assert data.main(call) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "herd_train: 1 images, 1 of them without boxes, 0 boxes",
        "herd_val: 1 images, 2 boxes",
        "wrote datasets/herd: images are hard links; 1 categories: cow",
    ]
    assert shown.err == "warning: 1 images are in no split and were left out\n"
    table = json.loads((herd / "datasets/herd/annotations/val.json").read_text())
    assert table["annotations"][1]["bbox"] == [0, 0, 50, 10]
    assert data.main(call) == 0
    assert "has this dataset already; nothing was written" in capsys.readouterr().out


def test_options_of_voc(herd):
    options = ["--classes", "cat,cow", "--ignore-difficult", "--zero-based"]
    assert data.main([*VOC, "--output", "herd", *options]) == 0
    table = json.loads((herd / "herd/annotations/train.json").read_text())
    assert [c["name"] for c in table["categories"]] == ["cat", "cow"]
    first = table["annotations"][0]
    assert first["bbox"] == [1, 1, 49, 9] and first["iscrowd"] == 1 and first["category_id"] == 2


def test_errors_of_the_user_are_plain_and_nothing_is_written(herd, capsys):
    (herd / "labels" / "a_2.txt").write_text("7 0.25 0.5 0.5 1\n")
    assert cli.main(["data", *YOLO, "--output", "datasets/herd"]) == 2
    error = capsys.readouterr().err
    first, last = error.splitlines()
    assert first.startswith("d2kd data stopped")
    assert last == "labels/a_2.txt, line 1: expected a class from 0 to 0, found '7'"
    assert not (herd / "datasets").exists()


def test_replace(herd, capsys):
    assert cli.main(["data", *YOLO, "--output", "herd"]) == 0
    (herd / "labels" / "a_1.txt").write_text("0 0.5 0.5 0.5 1\n")
    assert cli.main(["data", *YOLO, "--output", "herd"]) == 2
    assert "expected no folder, or this dataset, found something else" in capsys.readouterr().err
    assert cli.main(["data", *YOLO, "--output", "herd", "--replace"]) == 0
    table = json.loads((herd / "herd/annotations/train.json").read_text())
    assert len(table["annotations"]) == 4


@pytest.mark.parametrize("words", [[], ["voc"], ["yolo"], ["deep_pcb"]])
def test_help_ends_with_two_examples(words, capsys):
    with pytest.raises(SystemExit):
        data.main([*words, "--help"])
    examples = capsys.readouterr().out.split("examples:\n")[1]
    assert examples.count("  d2kd data ") == 2
