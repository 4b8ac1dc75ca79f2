"""Audits of whole configs: what is compared between sets, models and evaluator."""

import json
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image

from d2kd.audit import (
    audit_config,
    audit_in_all_processes,
    audit_labels,
    audit_sets,
    num_classes,
)
from d2kd.config import load_config
from d2kd.data import (
    PartialMapper,
    load_class_subset,
    load_unlabeled,
    mix,
    random_subset,
    register_folder,
)
from d2kd.pseudo import load_pseudo_labels
from tests.data.audit import sets

STUDENT = "configs/demo/student.py"


@pytest.fixture
def farm(tmp_path):
    """`make(change, split)` writes and registers a split; names are farm_train and farm_val."""
    made = []

    def make(change=lambda t: None, split="train", **fields):
        sets.write(tmp_path, "farm", split, change, seed=dict(train=0).get(split, 7), **fields)
        register_folder(tmp_path / "farm")
        made.append(f"farm_{split}")
        return tmp_path / "farm"

    yield make
    sets.remove(*made)


def config(*overrides, train="farm_train", test="farm_val", classes=3):
    names = [f"dataloader.train.dataset.names={train}", f"dataloader.test.dataset.names={test}"]
    return load_config(STUDENT, [*names, f"model.num_classes={classes}", *overrides])


def refused(cfg, *args) -> str:
    return "\n".join(audit_config(cfg, *args).refused)


def test_valid_config_passes_and_says_what_it_has(farm):
    farm()
    farm(split="val")
    audit = audit_config(config())
    assert not audit.messages and not audit.copies and audit.train is None
    assert "farm_train  train" in audit.table() and len(audit.sets) == 2


def test_random_numbers_stay_as_they_are(farm):
    farm()
    farm(split="val")

    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    audit_config(config())
    assert state() == before


def permute(content):
    """Green and blue change their ids, as a converter does that meets them in another order."""
    new = {1: 1, 2: 3, 3: 2}
    for category in content["categories"]:
        category["id"] = new[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]


def test_sets_that_number_a_class_differently_are_refused(farm):
    farm()
    farm(permute, "val")
    message = r"'green' as number 1 of 'farm_train' .* as number 2 of 'farm_val' .*green, blue"
    with pytest.raises(ValueError, match=message) as error:
        audit_in_all_processes(config())
    assert "Give both files the same `categories`, in the same order." in str(error.value)
    assert "labels.classes" not in str(error.value)


def test_mixed_sets_that_number_a_class_differently_are_refused(farm):
    farm()
    farm(permute, "more")
    farm(split="val")
    cfg = config()
    one = cfg.dataloader.train.dataset
    cfg.dataloader.train.dataset = L(mix)(a=one, b={**one, "names": "farm_more"})
    assert "'green' as number 1 of 'farm_train'" in refused(cfg)


@pytest.mark.parametrize(
    "classes, parent",
    [(("a", "A", "b"), None), (("red", "green"), "red"), (("red", "red", "green"), None)],
)
def test_one_list_may_have_similar_names_and_a_name_twice(farm, classes, parent):
    def change(content):
        if parent:
            content["categories"].insert(0, dict(id=0, name=parent))

    farm(change, classes=classes)
    farm(change, "val", classes=classes)
    assert not refused(config())


def test_names_that_differ_in_their_case_are_warned_of(farm):
    farm(classes=("cat", "dog"))
    farm(split="val", classes=("Dog", "Cat"))
    audit = audit_config(config(classes=2))
    assert not audit.refused
    assert any("differ in their case" in text for level, text in audit.messages)


def test_a_number_with_two_names_is_a_warning(farm):
    farm(classes=("cat", "dog", "cow"))
    farm(split="val", classes=("cat", "hound", "bull"))
    (text,) = (text for level, text in audit_config(config()).messages if "classes" in text)
    assert "number 1 is 'dog' in 'farm_train'" in text and "and 'hound' in 'farm_val'" in text
    assert "and 1 more numbers have two names. They count as one class" in text


def test_a_class_that_only_the_training_set_has_is_named(farm):
    farm(classes=("cat", "dog", "cow"))
    farm(split="val", classes=("cat",))
    text = refused(config())
    assert "expected the 1 class of 'farm_val'" in text
    assert "'farm_train' also has 'dog', 'cow'. Give the test set the same `categories`" in text


def test_classes_of_a_subset_follow_its_own_order(farm):
    farm()
    farm(split="val")
    cfg = config()
    cfg.dataloader.train.dataset = L(load_class_subset)(
        dataset="farm_train", classes=["green", "red"]
    )
    assert "as number 1 of classes (dataloader.train.dataset) (2 names differ" in refused(cfg)
    cfg.dataloader.train.dataset.classes = ["red", "green"]
    assert not refused(cfg)


@pytest.mark.parametrize("order, fits", [((0, 1, 2), True), ((0, 2, 1), False)])
def test_labels_by_teachers_number_the_classes_as_the_test_set_does(farm, tmp_path, order, fits):
    root = farm()
    farm(split="val")
    content = sets.table()
    content["info"] = {"image_root": f"{root}/train/"}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    said = dict(made_from=dict(settings=dict(classes=[sets.CLASSES[i] for i in order])))
    (tmp_path / "provenance.json").write_text(json.dumps(said))
    cfg = config()
    cfg.dataloader.train.dataset = L(load_pseudo_labels)(path=str(path), check=False)
    assert ("or label with them (labels.classes)" in refused(cfg)) is not fits
    if fits:
        assert len(audit_config(cfg).train) == 6


def test_set_with_more_classes_than_the_student_is_refused(farm):
    farm()
    farm(split="val")
    text = refused(config(classes=2))
    assert "model.num_classes: expected at least the 3 classes of 'farm_train'" in text
    assert "found 2. There is no place for 'blue'." in text


def test_boxes_of_a_function_without_class_names_need_a_class_of_the_student(farm):
    root = farm(split="val")
    content = sets.table(classes=sets.CLASSES)
    rows = load_coco_json(str(root / "annotations" / "val.json"), str(root / "val"))
    assert (
        content["categories"][-1]["id"] == 3
    )  # so that these category ids, 1 to 3, need 4 classes
    DatasetCatalog.register("mine", lambda: rows)
    try:
        assert "expected at least the 4 classes of mine, found 3" in refused(config(train="mine"))
    finally:
        sets.remove("mine")


def test_rotated_boxes_are_refused_in_training_test_and_truth(farm):
    farm()
    row = dict(bbox=[32, 32, 20, 10, 45], bbox_mode=BoxMode.XYWHA_ABS, category_id=0)
    record = dict(image_id=1, width=64, height=64, annotations=[row])
    DatasetCatalog.register("mine", lambda: [record])
    try:
        message = "mine: expected upright boxes, found 1 of 1 boxes that are rotated"
        for cfg in (config(train="mine", test="farm_train"), config(test="mine")):
            assert refused(cfg).startswith(message) and "none" not in refused(cfg)
        for labels in (dict(truth="mine"), dict(fit=dict(dataset="mine"))):
            with pytest.raises(ValueError, match=message):
                audit_labels(labels)
        audit_labels(dict(images=dict(dataset="mine")))  # their boxes are not used
    finally:
        sets.remove("mine")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_model_with_more_classes_than_the_evaluator_is_refused(farm, role):
    farm()
    farm(split="val")
    cfg = load_config(
        "configs/demo/distill.py",
        ["dataloader.train.dataset.names=farm_train", "dataloader.test.dataset.names=farm_val"],
    )
    text = refused(cfg, ("train", "test"), [role])
    assert f"model.{role}" in text and "the 3 classes of 'farm_val'" in text and "10" in text
    cfg.model.student.num_classes = 3
    assert bool(refused(cfg, ("train", "test"), [role])) is (role == "teacher")


def test_number_of_classes_is_found_in_all_kinds_of_configs():
    for source, expected in (
        ("COCO-Detection/retinanet_R_50_FPN_3x.yaml", 80),
        ("PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml", 20),
        ("configs/demo/student.py", 10),
        ("configs/demo/distill.py", 10),
        ("nowhere.py", None),
    ):
        assert num_classes(source, "model.teacher") == ("model.teacher", expected)


def evaluated_on(cfg, name):
    cfg.dataloader.evaluator.dataset_name = name
    return cfg


def test_evaluator_of_other_data_is_refused(farm):
    farm()
    farm(split="val")
    farm(lambda t: t["annotations"].reverse(), "other", images=6, boxes=3)
    text = refused(evaluated_on(config(), "farm_other"))
    assert "dataloader.evaluator.dataset_name: expected farm_val" in text and "'farm_other'" in text


def test_evaluator_may_have_another_name_for_the_same_images(farm):
    root = farm()
    farm(split="val")
    part = partial(
        load_coco_json, str(root / "annotations" / "val.json"), str(root / "val"), "part"
    )
    DatasetCatalog.register("part", lambda: part()[:3])
    try:
        audit = audit_config(evaluated_on(config(test="part"), "farm_val"))
        assert not audit.refused
        # COCOEvaluator takes the boxes of the other images for boxes that were not found.
        assert "3 of 6 images with boxes in 'farm_val' are not loaded" in audit.messages[0][1]
    finally:
        sets.remove("part")


def test_boxes_of_images_that_a_subset_does_not_test_are_warned_of(farm):
    farm()
    farm(split="val")
    cfg = config()
    cfg.dataloader.test.dataset = L(random_subset)(dataset=cfg.dataloader.test.dataset, share=0.5)
    cfg.dataloader.evaluator.dataset_name = "farm_val"
    ((_, text),) = audit_config(cfg).messages
    assert "3 of 6 images with boxes in 'farm_val' are not loaded" in text


@pytest.mark.parametrize("fields, count", [(["=False"], 0), (["=True"], 1), ([], 1)])
def test_empty_images_that_are_left_out_of_the_test_are_warned_of(farm, fields, count):
    farm()
    farm(lambda t: t.update(annotations=t["annotations"][:6]), split="val")
    cfg = config(*[f"dataloader.test.dataset.filter_empty{field}" for field in fields])
    if not fields:
        del cfg.dataloader.test.dataset.filter_empty
    messages = audit_config(cfg).messages
    assert len(messages) == count
    assert not count or "farm_val: 3 of 6 images have no box" in messages[0][1]


def no_boxes(content):
    content["annotations"].clear()


only_crowds = sets.every(lambda a: a.update(iscrowd=1))


@pytest.mark.parametrize("change, crowds", [(no_boxes, ""), (only_crowds, " but 12 crowds")])
def test_a_test_set_without_boxes_is_warned_of(farm, change, crowds):
    farm()
    farm(change, split="val")
    ((level, text),) = audit_config(config()).messages
    assert level == "warning" and f"none in the 6 images of farm_val{crowds}" in text
    assert "AP will be nan" in text
    # Detectron2 would stop at the evaluation: it leaves out all images.
    assert "filter_empty=False" in refused(config("dataloader.test.dataset.filter_empty=True"))


@pytest.mark.parametrize("change", [no_boxes, only_crowds, lambda t: t.pop("annotations")])
@pytest.mark.parametrize("filter_empty", [True, False])
def test_a_training_set_without_boxes_is_refused(farm, change, filter_empty):
    farm(change)
    farm(split="val")
    cfg = config(f"+dataloader.train.dataset.filter_empty={filter_empty}")
    assert "train.dataset: expected boxes, found none in the 6 images of farm_train" in refused(cfg)
    # Images of the background beside others are fine.
    farm(split="more")
    cfg.dataloader.train.dataset.names = ["farm_train", "farm_more"]
    assert not refused(cfg)


def test_unlabeled_training_images_are_warned_of_only(farm):
    farm()
    farm(split="val")
    cfg = config()
    cfg.dataloader.train.dataset = L(load_unlabeled)(name="farm_train")
    assert not refused(cfg)
    assert any("found none in the 6 images" in text for _, text in audit_config(cfg).messages)
    cfg.dataloader.train.dataset = L(mix)(
        a=L(get_detection_dataset_dicts)(names="farm_train"), b=L(load_unlabeled)(name="farm_train")
    )
    assert not audit_config(cfg).messages


def test_truth_without_boxes_is_warned_of(farm):
    root = farm(no_boxes)
    for name in ("farm_train", str(root / "annotations" / "train.json")):
        ((level, text),) = audit_sets({name: "truth"}).messages
        assert level == "warning" and "There is nothing to compare labels with" in text


def test_repeated_image_ids_are_refused_before_the_boxes_land_on_other_images(farm):
    def change(content):
        content["images"][3]["id"] = content["images"][2]["id"]

    farm(change)
    farm(split="val")
    assert "farm_train: expected a different id for each image, found 1 of 6" in refused(config())


@pytest.mark.parametrize("target, level", [(DatasetMapper, "refused"), (PartialMapper, "refused")])
def test_missing_image_is_refused_with_detectron2s_mapper(farm, target, level):
    farm(lambda t: t["images"][2].update(file_name="nowhere.png"))
    farm(split="val")
    cfg = config()
    cfg.dataloader.train.mapper._target_ = target
    text = refused(cfg)
    assert "nowhere.png. Put the file there, or correct the path" in text


class OwnMapper(DatasetMapper):
    def __call__(self, image):
        return image


def test_missing_image_is_a_warning_with_a_mapper_that_reads_in_its_own_way(farm):
    farm(lambda t: t["images"][2].update(file_name="nowhere.png"))
    farm(split="val")
    cfg = config()
    cfg.dataloader.train.mapper._target_ = OwnMapper
    audit = audit_config(cfg)
    assert not audit.refused
    assert any(level == "warning" and "nowhere.png" in text for level, text in audit.messages)


def test_images_that_a_subset_leaves_out_need_not_be_there(farm):
    root = farm()
    farm(split="val")
    cfg = config()
    node = cfg.dataloader.train.dataset
    cfg.dataloader.train.dataset = L(random_subset)(dataset=node, share=0.5)
    used = {x["file_name"] for x in audit_config(cfg).train}
    for path in (root / "train").iterdir():
        if str(path) not in used:
            path.unlink()
    assert len(used) == 3 and not refused(cfg)
    assert "3 of 6 images that have no file" in refused(config())


@pytest.mark.parametrize(
    "names, message",
    [
        (dict(test="toy_gone"), r"expected the files of 'toy_gone', found no nowhere.json"),
        (dict(test="toy_nothing"), r"expected images, found none in 'toy_nothing'"),
    ],
)
def test_sets_that_are_missing_or_empty_are_named(farm, names, message):
    farm()
    DatasetCatalog.register("toy_nothing", lambda: [])
    DatasetCatalog.register("toy_gone", lambda: Path("nowhere.json").read_text())
    try:
        with pytest.raises(ValueError, match=message):
            audit_config(config(**names))
    finally:
        sets.remove("toy_nothing", "toy_gone")


def test_function_of_a_user_with_masks_and_keypoints_is_fine(farm, tmp_path):
    root = farm(split="val")

    def mine():
        table, images = str(root / "annotations" / "val.json"), str(root / "val")
        records = load_coco_json(table, images)
        for record in records:
            for row in record["annotations"]:
                row["segmentation"] = [[1, 1, 9, 1, 9, 9]]
                row["keypoints"] = [3.5, 3.5, 2]
                row["category_id"] -= 1
        return records

    DatasetCatalog.register("mine", mine)
    MetadataCatalog.get("mine").thing_classes = list(sets.CLASSES)
    try:
        cfg = config(train="mine", test="mine")
        cfg.dataloader.evaluator.output_dir = str(tmp_path / "out")
        assert not audit_config(cfg).messages
    finally:
        sets.remove("mine")


class Unknown(torch.nn.Module):
    """A detector whose config does not say its number of classes."""


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("sections", [("train", "test"), ("test",)])
def test_set_of_a_function_needs_a_folder_for_its_coco_file(farm, tmp_path, known, sections):
    root = farm()
    table = str(root / "annotations" / "train.json")
    rows = load_coco_json(table, str(root / "train"), "farm_rows")
    DatasetCatalog.register("mine", lambda: rows)
    MetadataCatalog.get("mine").thing_classes = list(sets.CLASSES)
    try:
        cfg = config(test="mine")
        if not known:
            cfg.model = L(Unknown)()
        text = refused(cfg, sections, ["student"])
        assert "evaluator.output_dir: expected a folder, because 'mine' has no COCO file" in text
        cfg.dataloader.evaluator.output_dir = str(tmp_path / "out")
        assert not refused(cfg, sections, ["student"])
        cfg.dataloader.evaluator.tasks = ("bbox", "nonsense")
        assert "expected an evaluator that takes detections of" in refused(cfg, sections)
    finally:
        sets.remove("mine", "farm_rows")


def test_truth_and_fit_of_a_labeling_are_audited(farm):
    farm(sets.box(lambda x, y, w, h: [float("nan"), y, w, h], 3))
    farm(split="val")
    audit_labels(dict(images=dict(dataset="farm_train"), fit=dict(dataset="farm_val")))
    for labels in (dict(truth="farm_train"), dict(fit=dict(dataset="farm_train"))):
        with pytest.raises(ValueError, match=r"farm_train: expected finite numbers, found 4 of 12"):
            audit_labels(labels)


def test_json_of_truth_is_audited(farm):
    root = farm(sets.box(lambda x, y, w, h: [float("nan"), y, w, h], 3))
    with pytest.raises(ValueError, match=r"train.json: expected finite numbers"):
        audit_labels(dict(truth=str(root / "annotations" / "train.json")))


def test_set_registered_by_detectron2s_function_is_repaired(tmp_path):
    def change(content):
        for annotation in content["annotations"]:
            annotation["id"] = 1

    path = sets.write(tmp_path, "farm", "val", change)
    register_coco_instances("farm_mine", {}, str(path), str(tmp_path / "farm" / "val"))
    try:
        audit = audit_config(config(train="farm_mine", test="farm_mine"))
        assert set(audit.copies) == {"farm_mine"} and not audit.refused
        assert [len(x["annotations"]) for x in DatasetCatalog.get("farm_mine")] == [2] * 6
    finally:
        sets.remove("farm_mine")


@pytest.mark.parametrize("value, boxes", [(None, 12), ("0", 12), ("1", 6)])
def test_boxes_are_not_left_out_as_crowds_for_an_iscrowd_that_is_no_number(farm, value, boxes):
    farm(sets.every(lambda a: a.update(iscrowd=value), 2))
    farm(split="val")
    audit = audit_config(config())
    assert "6 of 12 annotations have no number as iscrowd" in audit.messages[0][1]
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
    images = [mapper(x) for x in get_detection_dataset_dicts("farm_train")]
    assert sum(len(x["instances"]) for x in images) == boxes


@pytest.mark.parametrize("sizes", [{"width": None}, {"width": "64", "height": "64"}])
def test_sizes_that_the_file_lacks_follow_the_images(farm, sizes):
    root = farm(lambda t: [i.update(sizes) for i in t["images"]])
    farm(split="val")
    assert not audit_config(config()).refused
    for path in (root / "train").iterdir():
        Image.open(path).resize((128, 96)).save(path)
    sets.remove("farm_train")
    register_folder(root)
    assert not audit_config(config()).refused
    rows = get_detection_dataset_dicts("farm_train")
    assert {(x["width"], x["height"]) for x in rows} == {(128, 96)}


def test_what_only_evaluation_needs_is_said_of_test_sets_only(farm):
    farm(sets.every(lambda a: a.pop("area")))
    farm(sets.every(lambda a: a.pop("area")), split="val")
    audit = audit_config(config())
    ((level, text),) = audit.messages
    assert level == "note" and text.startswith("farm_val: 12 of 12 annotations have no area")
    assert set(audit.copies) == {"farm_val"}


def test_missing_labels_of_teachers_are_named_with_the_fix(farm):
    farm(split="val")
    cfg = config()
    cfg.dataloader.train.dataset = L(load_pseudo_labels)(path="nowhere/labels.json")
    with pytest.raises(ValueError, match=r"dataset: nowhere/labels\.json: .* `d2kd label`"):
        audit_config(cfg)
