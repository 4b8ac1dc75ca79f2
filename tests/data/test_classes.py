import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from omegaconf import OmegaConf

from d2kd.data.classes import classes_of_dataset, classes_of_test_set


@pytest.fixture
def farm(tmp_path):
    """A COCO file, registered without a list of classes, as by `register_coco_instances`."""
    rows = [{"id": 7, "name": "pig"}, {"id": 3, "name": "cow"}]
    images = [{"id": 1, "file_name": "1.png", "width": 8, "height": 8}]
    path = tmp_path / "farm.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": rows}))
    register_coco_instances("farm", {}, str(path), str(tmp_path))
    yield path
    DatasetCatalog.remove("farm")
    MetadataCatalog.remove("farm")


def test_classes_are_known_before_anything_has_loaded_the_set(farm):
    assert classes_of_dataset("farm") == ("cow", "pig")  # by their ids


@pytest.mark.parametrize("names", ["farm", ["farm", "other"]])
def test_classes_of_the_test_set(farm, names):
    cfg = OmegaConf.create({"dataloader": {"test": {"dataset": {"names": names}}}})
    assert classes_of_test_set(cfg, 2) == ("cow", "pig")


def test_another_dataset_may_be_named(farm):
    assert classes_of_test_set(OmegaConf.create({}), 2, "farm") == ("cow", "pig")


def test_a_dataset_of_another_number_of_classes_names_none(farm):
    assert classes_of_test_set(OmegaConf.create({}), 3, "farm") == ("0", "1", "2")


def test_without_the_file_or_a_dataset_there_are_numbers(farm):
    assert classes_of_test_set(OmegaConf.create({}), 2) == ("0", "1")
    farm.unlink()
    assert classes_of_test_set(OmegaConf.create({}), 2, "farm") == ("0", "1")
