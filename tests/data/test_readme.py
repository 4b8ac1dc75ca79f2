"""The Python examples of datasets/README.md work as they are shown."""

import re
from pathlib import Path

import pytest
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2kd.data.folders import register_folder

ROOT = Path(__file__).parents[2]


def example(word: str) -> str:
    """The Python example that has a word in it."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "datasets/README.md").read_text(), re.DOTALL
    )
    (found,) = [block for block in blocks if word in block]
    return found


@pytest.fixture
def catalog():
    """Forget the datasets that a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def test_a_config_that_registers_data_loads_twice(tmp_path, catalog):
    (tmp_path / "my.py").write_text(example("register_coco_instances"))
    for _ in range(2):
        LazyConfig.load(str(tmp_path / "my.py"))
    assert {"my_train", "my_val"} <= set(DatasetCatalog.list())


def test_plates_become_registered_sets(tmp_path, catalog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("us", "eu", "br"):
        folder = tmp_path / "benchmarks" / "endtoend" / split
        folder.mkdir(parents=True)
        Image.new("RGB", (90, 60)).save(folder / "a.jpg")
        (folder / "a.txt").write_text("a.jpg\t10\t20\t30\t15\tAB 123\n")
    exec(compile(example("endtoend"), "plates.py", "exec"), {})
    assert register_folder("datasets/plates") == ["plates_br", "plates_eu", "plates_us"]
    (record,) = DatasetCatalog.get("plates_eu")
    assert record["annotations"][0]["bbox"] == [10, 20, 30, 15]
    assert (record["width"], record["height"]) == (90, 60)
    assert Image.open(record["file_name"]).size == (90, 60)
