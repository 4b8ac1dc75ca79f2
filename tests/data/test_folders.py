import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.data.folders import register_folder, register_folders
from tests import toys


@pytest.fixture
def root(tmp_path):
    """A dataset "farm", which has labels for "train" and none for "extra", and another folder."""
    before = set(DatasetCatalog.list())
    table, _ = toys.coco_dataset(tmp_path / "farm" / "train", n=3)
    (tmp_path / "farm" / "annotations").mkdir()
    table.rename(tmp_path / "farm" / "annotations" / "train.json")
    toys.coco_dataset(tmp_path / "farm" / "extra", n=2)[0].unlink()
    (tmp_path / "other" / "annotations").mkdir(parents=True)
    (tmp_path / "other" / "annotations" / "instances_2017.json").write_text("{}")
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


def test_splits_with_and_without_labels(root):
    assert register_folders(root) == ["farm_extra", "farm_train"]
    train = DatasetCatalog.get("farm_train")
    assert len(train) == 3 and all(len(x["annotations"]) == 1 for x in train)
    assert MetadataCatalog.get("farm_train").evaluator_type == "coco"
    assert MetadataCatalog.get("farm_train").thing_classes == [str(c) for c in range(10)]
    extra = DatasetCatalog.get("farm_extra")
    assert [x["annotated_classes"] for x in extra] == [[], []]
    assert all(x["annotations"] == [] for x in extra)


def test_hidden_folders_are_left_out(root):
    shutil.copytree(root / "farm", root / ".farm.host.7.tmp")
    shutil.copytree(root / "farm" / "extra", root / "farm" / ".extra")
    shutil.copy(root / "farm/annotations/train.json", root / "farm/annotations/.extra.json")
    assert register_folders(root) == ["farm_extra", "farm_train"]


def test_given_name_and_names_that_exist_already(root):
    DatasetCatalog.register("cows_train", lambda: ["mine"])
    assert register_folder(root / "farm", "cows") == ["cows_extra", "cows_train"]
    assert DatasetCatalog.get("cows_train") == ["mine"]
    assert register_folder(root / "farm", "cows") == ["cows_extra", "cows_train"]


def test_a_split_with_the_name_of_the_folder_keeps_its_name(root):
    (root / "farm" / "extra").rename(root / "farm" / "farm_extra")
    assert register_folder(root / "farm") == ["farm_extra", "farm_train"]


def test_a_folder_without_splits_is_refused(root):
    with pytest.raises(ValueError, match=r"<split>.*found no split"):
        register_folder(root / "nothing")
