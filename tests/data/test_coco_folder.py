"""The usual layouts of COCO folders are found, and everything else is one plain error."""

import json

import pytest
from detectron2.data import DatasetCatalog

from d2kd.data import register_coco_folder
from tests import toys

pytestmark = pytest.mark.usefixtures("new_datasets")


def write(root, split, table, images):
    """One split: its JSON at `table` and its images in `images`, both relative to `root`."""
    source, _ = toys.coco_dataset(root / images, n=3 if split == "train" else 2, classes=2)
    (root / table).parent.mkdir(parents=True, exist_ok=True)
    source.rename(root / table)


@pytest.mark.parametrize(
    "table, images, val",
    [
        ("{}.json", "images", "val"),
        ("{}.json", ".", "val"),
        ("annotations/{}.json", "{}", "val"),
        ("annotations/instances_{}.json", "images/{}", "val"),
        ("{}/_annotations.coco.json", "{}", "valid"),
    ],
)
def test_layouts(tmp_path, table, images, val):
    root = tmp_path / "farm"
    for split in ("train", val):
        write(root, split, table.format(split), images.format(split))
    found = register_coco_folder(root)
    assert found == ("farm_train", "farm_val", ("0", "1"), 3)
    assert [len(DatasetCatalog.get(name)) for name in found[:2]] == [3, 2]
    assert register_coco_folder(str(root)) == found  # a config is loaded several times


def test_classes_are_in_the_order_of_their_ids(tmp_path):
    folder = toys.coco_folder(tmp_path / "farm")
    table = json.loads((folder / "train.json").read_text())
    table["categories"] = [dict(id=9, name="pig"), dict(id=2, name="cow")]
    (folder / "train.json").write_text(json.dumps(table))
    assert register_coco_folder(folder).classes == ("cow", "pig")


def test_another_dataset_has_the_name(tmp_path):
    register_coco_folder(toys.coco_folder(tmp_path / "a/farm"))
    with pytest.raises(ValueError, match=r"farm_train: expected this name to be free.*Rename"):
        register_coco_folder(toys.coco_folder(tmp_path / "b/farm"))


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (
            lambda f: (f / "val.json").unlink(),
            FileNotFoundError,
            r"val labels .*val\.json, valid.*found none",
        ),
        (
            lambda f: (f / "val.json").rename(f / "farm_test.json"),
            FileNotFoundError,
            r"val labels .*found farm_test.json. .*: ln -s farm_test.json val.json",
        ),
        (lambda f: (f / "images").rename(f / "jpg"), FileNotFoundError, r"'0\.png', in one of"),
        (lambda f: (f / "train.json").write_text("[]"), ValueError, "a list of images, found list"),
        (lambda f: (f / "train.json").write_text("{"), ValueError, "expected a JSON file"),
        (
            lambda f: (f / "train.json").write_text('{"images": [], "categories": []}'),
            ValueError,
            "expected images, found an empty list",
        ),
    ],
)
def test_mistakes(tmp_path, damage, error, message):
    folder = toys.coco_folder(tmp_path / "farm")
    damage(folder)
    with pytest.raises(error, match=message):
        register_coco_folder(folder)


def test_categories_without_ids(tmp_path):
    folder = toys.coco_folder(tmp_path / "farm")
    table = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(dict(table, categories=[{"name": "cow"}])))
    with pytest.raises(ValueError, match=r"expected a list of dicts with id and name, found"):
        register_coco_folder(folder)
