"""Evaluations are rehearsed, and a perfect detector gets an AP of 100 whatever the ids are."""

import json

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from d2kd.audit import audit_config
from d2kd.data import register_crowdhuman, register_folder
from d2kd.evaluation.crowdhuman import CrowdHumanEvaluator
from d2kd.evaluation.rehearsal import build_evaluator, rehearse, takes_image_ids
from tests.audit.test_run import config
from tests.data.audit import sets


def detections(record: dict) -> dict:
    """What a perfect detector finds."""
    found = Instances((record["height"], record["width"]))
    rows = record["annotations"]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in rows]
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.full((len(rows),), 0.9)
    found.pred_classes = torch.tensor([a["category_id"] for a in rows], dtype=torch.long)
    return {"instances": found}


def perfect_ap(name: str, **fields) -> float:
    records = DatasetCatalog.get(name)
    evaluator = build_evaluator(L(COCOEvaluator)(dataset_name=name, **fields))
    evaluator.reset()
    evaluator.process(records, [detections(x) for x in records])
    return evaluator.evaluate()["bbox"]["AP"]


def numbered(function):
    def change(content):
        for i, annotation in enumerate(content["annotations"]):
            annotation["id"] = function(i)

    return change


KINDS = {
    "valid": lambda t: None,
    "from 0": numbered(lambda i: i),
    "repeated": numbered(lambda i: i // 2),
    "strings": numbered(lambda i: f"box {i}"),
    "none": sets.every(lambda a: a.pop("id")),
    "negative": numbered(lambda i: -i - 1),
    "no area": sets.every(lambda a: a.pop("area"), 2),
    "area of null": sets.every(lambda a: a.update(area=None), 2),
    "negative area": sets.every(lambda a: a.update(area=-1)),
    "area of NaN": sets.every(lambda a: a.update(area=float("nan"))),
    "infinite area": sets.every(lambda a: a.update(area=float("inf"))),
    "no iscrowd": sets.every(lambda a: a.pop("iscrowd"), 2),
    "no info": lambda t: t.pop("info"),
    "no sizes": lambda t: [(i.pop("width"), i.pop("height")) for i in t["images"]],
    "image ids are strings": lambda t: [
        x.update({key: f"image {x[key]}"})
        for rows, key in ((t["images"], "id"), (t["annotations"], "image_id"))
        for x in rows
    ],
    "category ids from 0": lambda t: [
        x.update({key: x[key] - 1})
        for rows, key in ((t["categories"], "id"), (t["annotations"], "category_id"))
        for x in rows
    ],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fast", [True, False])
def test_perfect_detector_gets_100(tmp_path, kind, fast):
    sets.write(tmp_path, "oracle", "val", KINDS[kind])
    register_folder(tmp_path / "oracle")
    try:
        audit = audit_config(config(train="oracle_val", test="oracle_val"))
        audit.stop_if_refused()
        assert perfect_ap("oracle_val", use_fast_impl=fast) == pytest.approx(100, abs=1e-6)
    finally:
        sets.remove("oracle_val")


@pytest.fixture
def val(tmp_path):
    sets.write(tmp_path, "toy", "val")
    register_folder(tmp_path / "toy")
    yield DatasetCatalog.get("toy_val")
    sets.remove("toy_val")


def test_rehearsal_is_quiet_and_writes_nothing(val, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    node = L(COCOEvaluator)(dataset_name="toy_val", output_dir=str(output))
    assert rehearse(node, val, 3)[0] == ""
    assert not list(output.iterdir()) and capsys.readouterr() == ("", "")


def test_rehearsal_finds_a_class_that_the_evaluator_does_not_know(val):
    assert "class=3" in rehearse(L(COCOEvaluator)(dataset_name="toy_val"), val, 4)[0]


def test_rehearsal_knows_the_metrics(val):
    _, metrics = rehearse(L(COCOEvaluator)(dataset_name="toy_val"), val, 3)
    assert {"bbox/AP", "bbox/AP75", "bbox/AP-red"} <= set(metrics)


def test_best_metric_must_be_given_by_the_evaluator(val):
    def refused(metric, *evaluated):
        cfg = config(f"train.best_metric={metric}", train="toy_val", test="toy_val")
        return audit_config(cfg, ("train", "test"), evaluated).refused

    assert not refused("bbox/AP50") and not refused("bbox/AP-red") and not refused("")
    assert not refused("segm/AP")  # if the detections have masks, which is not known yet
    (message,) = refused("bbox/APxx")
    assert message.startswith("train.best_metric: expected a metric that the evaluator gives (bbox")
    assert "bbox/AP75" in message and message.endswith("found 'bbox/APxx'.")
    assert not refused("bbox/APxx", "student")  # an evaluation keeps no file


def test_best_metric_needs_an_evaluator(val):
    cfg = config("train.best_metric=bbox/AP", train="toy_val", test="toy_val")
    del cfg.dataloader.evaluator
    assert "evaluator: expected an evaluator that gives" in audit_config(cfg).refused[0]


@pytest.mark.parametrize("tasks", [("bbox",), ("bbox", "segm")])
def test_rehearsal_knows_the_tasks(tmp_path, tasks):
    def change(content):
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

    sets.write(tmp_path, "masks", "val", change)
    register_folder(tmp_path / "masks")
    try:
        node = L(COCOEvaluator)(dataset_name="masks_val", tasks=tasks)
        assert rehearse(node, DatasetCatalog.get("masks_val"), 3)[0] == ""
    finally:
        sets.remove("masks_val")


class Picky(DatasetEvaluator):
    def evaluate(self):
        raise RuntimeError("no images of people")


def test_evaluator_of_a_user_that_fails_is_a_warning(val):
    cfg = config(train="toy_val", test="toy_val")
    cfg.dataloader.evaluator = L(Picky)()
    audit = audit_config(cfg)
    assert not audit.refused
    assert [text for level, text in audit.messages if "no images of people" in text]


def test_annotations_of_an_earlier_run_are_not_used(tmp_path):
    row = dict(bbox=[8, 8, 24, 24], bbox_mode=BoxMode.XYXY_ABS, category_id=0, iscrowd=0)
    records = [dict(image_id=1, file_name="a.png", width=64, height=64, annotations=[row])]
    old = sets.table(images=1)
    (tmp_path / "mine_coco_format.json").write_text(json.dumps(old))
    DatasetCatalog.register("mine", lambda: records)
    MetadataCatalog.get("mine").thing_classes = ["red"]
    try:
        assert perfect_ap("mine", output_dir=str(tmp_path)) == pytest.approx(100, abs=1e-6)
    finally:
        sets.remove("mine")


def test_rehearsal_of_keypoints(tmp_path):
    def change(content):
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation.update(keypoints=[x, y, 2, x + w, y + h, 2], num_keypoints=2)

    sets.write(tmp_path, "poses", "val", change)
    register_folder(tmp_path / "poses")
    try:
        fields = dict(tasks=("bbox", "keypoints"), kpt_oks_sigmas=[0.1, 0.1])
        node = L(COCOEvaluator)(dataset_name="poses_val", **fields)
        assert rehearse(node, DatasetCatalog.get("poses_val"), 3)[0] == ""
    finally:
        sets.remove("poses_val")


def test_rehearsal_of_crowdhuman(tmp_path):
    people = [{"tag": "person", "fbox": [-5, 4, 30, 200]}, {"tag": "mask", "fbox": [1, 1, 9, 9]}]
    lines = [json.dumps({"ID": str(i), "gtboxes": people}) for i in range(3)]
    folder = tmp_path / "crowdhuman"
    (folder / "Images").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (64, 48)).save(folder / "Images" / f"{i}.jpg")
    for split in ("train", "val"):
        (folder / f"annotation_{split}.odgt").write_text("\n".join(lines))
    register_crowdhuman(tmp_path)
    try:
        cfg = config(train="crowdhuman_train", test="crowdhuman_val", classes=1)
        for evaluator in (CrowdHumanEvaluator, COCOEvaluator):
            cfg.dataloader.evaluator = L(evaluator)(dataset_name="crowdhuman_val")
            audit = audit_config(cfg)
            assert not audit.refused and [level for level, _ in audit.messages] == ["note"] * 2
            assert "3 of 3 boxes extend beyond the border" in audit.messages[0][1]
    finally:
        register_crowdhuman()


class Remembers(DatasetEvaluator):
    def __init__(self, folder, allow_cached_coco=True):
        (folder / str(allow_cached_coco)).touch()

    def evaluate(self):
        return {"remembered": {}}


def test_no_evaluator_of_a_list_uses_cached_annotations(tmp_path):
    nodes = [
        L(Remembers)(folder=tmp_path),
        L(COCOPanopticEvaluator)(dataset_name="coco_2017_val_panoptic"),
    ]
    evaluator = build_evaluator(nodes[:1])
    assert evaluator.evaluate() == {"remembered": {}}
    assert [x.name for x in tmp_path.iterdir()] == ["False"]
    assert [takes_image_ids(x) for x in (*nodes, L(COCOEvaluator)())] == [False, False, True]
