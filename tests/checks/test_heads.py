"""The parts of a detector have its number of classes."""

import pytest
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate

from d2kd import Distiller
from d2kd.checks import check_heads
from d2kd.config import load_config


def model(name: str):
    return model_zoo.get_config(f"common/models/{name}.py").model


@pytest.mark.parametrize("name", ["retinanet", "fcos", "mask_rcnn_fpn", "cascade_rcnn"])
def test_detectron2s_models_pass(name):
    check_heads(model(name))


CHANGES = [
    ("retinanet", "head", "model.head.num_classes: expected 80, as model.num_classes says"),
    ("fcos", "head", r"model.head.num_classes: expected 80"),
    ("mask_rcnn_fpn", "roi_heads.box_predictor", "model.roi_heads.box_predictor.num_classes: exp"),
    ("mask_rcnn_fpn", "roi_heads.mask_head", "model.roi_heads.mask_head.num_classes: expected 80"),
    ("cascade_rcnn", "roi_heads.box_predictors.1", r"roi_heads.box_predictors\[1\].num_classes"),
]


@pytest.mark.parametrize("name, place, message", CHANGES)
def test_a_head_of_other_classes_is_named(name, place, message):
    cfg = model(name)
    part = cfg
    for key in place.split("."):
        part = part[int(key)] if key.isdigit() else part[key]
    part.num_classes = 7
    with pytest.raises(ValueError, match=rf"{message}.*found 7. Set both alike"):
        check_heads(cfg)
    with pytest.raises(ValueError, match=r"model.student.*found 7"):
        check_heads(L(Distiller)(student=cfg))


def test_one_mask_for_all_classes_is_fine():
    cfg = model("mask_rcnn_fpn")
    cfg.roi_heads.mask_head.num_classes = 1
    check_heads(cfg)


def test_head_of_d2kds_detectors():
    cfg = load_config("configs/experiments/dense/atss.py", ["model.head.num_classes=7"])
    with pytest.raises(ValueError, match=r"model.head.num_classes: expected 10.* found 7"):
        check_heads(cfg.model)


@pytest.mark.parametrize(
    "name, place, right", [("retinanet", "", 9), ("mask_rcnn_fpn", "proposal_generator.", 3)]
)
def test_anchors_of_head_and_generator_must_agree(name, place, right):
    cfg = model(name)
    part = cfg.proposal_generator if place else cfg
    part.head.num_anchors = 2
    with pytest.raises(ValueError, match=rf"model.{place}head.num_anchors: expected {right}, the"):
        check_heads(cfg)


@pytest.mark.parametrize(
    "sizes, ratios", [([[8], [16]], [1.0]), ([8, 9], [[1.0, 2.0]]), ([[8, 9], [16, 17]], [[1.0]])]
)
def test_anchors_are_counted_as_detectron2_counts_them(sizes, ratios):
    cfg = model("retinanet")
    cfg.anchor_generator.update(sizes=sizes, aspect_ratios=ratios, strides=[8, 16])
    (count,) = set(instantiate(cfg.anchor_generator).num_anchors)
    cfg.head.num_anchors = count
    check_heads(cfg)
    cfg.head.num_anchors = count + 1
    with pytest.raises(ValueError, match=rf"expected {count}, the anchors of a cell"):
        check_heads(cfg)
