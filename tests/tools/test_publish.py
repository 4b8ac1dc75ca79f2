"""`python -m d2kd.tools.publish`: the row and the file that it writes."""

import hashlib
import json

import cv2
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from d2kd import model_zoo
from d2kd.model_zoo import students
from d2kd.tools import publish
from tests import toys
from tests.model_zoo.conftest import CONFIG


def arguments(folder, *more: str, name: str = "toy_tiny") -> list[str]:
    cv2.imwrite(str(folder / "picture.png"), toys.image()["image"].permute(1, 2, 0).numpy())
    given = ["toy/student.py", str(folder / "toy/student.pth"), name, "--ap", "31.25"]
    return [*given, "--image", str(folder / "picture.png"), *more]


CLASSES = ["--classes", "cat", "dog", "cow"]


def test_file_and_row(zoo, trained, capsys):
    more = ["--data", "toy_test", "--training", "docs/results.md#toy"]
    assert publish.main(arguments(zoo, *CLASSES, *more)) == 0
    content = (zoo / "toy/toy_tiny.safetensors").read_bytes()
    row = json.loads((zoo / "students.json").read_text())["toy_tiny"]
    gflops = row.pop("gflops")
    assert row == dict(
        config="toy/student.py",
        weights="toy/toy_tiny.safetensors",
        sha256=hashlib.sha256(content).hexdigest(),
        classes=["cat", "dog", "cow"],
        ap=31.25,
        data="toy_test",
        parameters=sum(p.numel() for p in trained.parameters()),
        training="docs/results.md#toy",
        labels="",
    )
    assert len(model_zoo.get_detector("toy_tiny", device="cpu")(str(zoo / "picture.png"))) > 0
    cells = [cell.strip() for cell in capsys.readouterr().out.strip().strip("|").split("|")]
    assert cells[0] == "`toy_tiny`" and cells[1] == "`configs/toy/student.py`"
    assert cells[3] == "31.2" and cells[-1] == f"`{row['sha256'][:12]}`"
    assert 0 < gflops < 1


def test_gflops_are_those_of_the_size_that_the_config_resizes_to(zoo):
    gflops = []
    for i, size in enumerate((96, 192)):
        text = CONFIG.replace("short_edge_length=96, max_size=128", f"short_edge_length={size}")
        (zoo / "toy/student.py").write_text(text)
        assert publish.main(arguments(zoo, *CLASSES, name=f"toy_{i}")) == 0
        gflops.append(model_zoo.find_entry(f"toy_{i}").gflops)
    # Padding to multiples of 32 pixels changes neither size, so that there are 4 times the pixels.
    assert gflops[1] / gflops[0] == pytest.approx(4, rel=0.05)


def test_classes_and_picture_of_the_test_set(zoo, tmp_path):
    files = toys.coco_dataset(tmp_path / "images", classes=3)
    register_coco_instances("never_registered", {}, *map(str, files))
    try:
        given = ["toy/student.py", str(zoo / "toy/student.pth"), "toy_tiny", "--ap", "1"]
        assert publish.main(given) == 0
    finally:
        DatasetCatalog.remove("never_registered")
        MetadataCatalog.remove("never_registered")
    entry = model_zoo.find_entry("toy_tiny")
    assert entry.classes == ("0", "1", "2") and entry.data == "never_registered"


def test_a_row_is_replaced_and_others_are_kept(zoo):
    for name, ap in (("b", "1"), ("a", "2"), ("b", "3")):
        assert publish.main(arguments(zoo, *CLASSES, "--ap", ap, name=name)) == 0
    assert model_zoo.list_detectors() == ["a", "b"]
    assert model_zoo.find_entry("a").ap == 2 and model_zoo.find_entry("b").ap == 3


@pytest.mark.parametrize(
    ("more", "name", "message"),
    [
        (CLASSES, "../toy", r"name: expected small letters, digits and _, found '\.\./toy'"),
        (["--classes", "cat"], "toy_tiny", "expected the names of the 3 classes .* found 1: cat"),
        (["--ap", "-1"], "toy_tiny", "--ap: expected a number >= 0 and <= 100, found -1"),
        ([], "toy_tiny", "expected the config's test set to be registered, found no 'never_reg"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(zoo, more, name, message):
    argv = arguments(zoo, *more, name=name)
    before = sorted(zoo.rglob("*"))
    with pytest.raises(ValueError, match=message):
        publish.main(argv)
    assert sorted(p for p in zoo.rglob("*") if "__pycache__" not in str(p)) == before
    assert students.read_table() == {}
