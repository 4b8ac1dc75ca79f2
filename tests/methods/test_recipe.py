"""The recommended recipe fits every pair of detectors that it is for, and trains."""

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf

from d2kd import Distiller, Teacher
from d2kd.methods import Method, Methods, recommended
from tests import toys

DENSE = {
    "RetinaNet": toys.retinanet,
    "FCOS": toys.fcos,
    "ATSS": lambda **fields: toys.point("ATSS", **fields),
    "GFL": lambda **fields: toys.point("GFL", **fields),
}


def losses(student, teacher, node) -> dict[str, torch.Tensor]:
    methods = instantiate(node)
    assert isinstance(methods, Methods) and len(methods) > 0
    assert all(isinstance(method, Method) for method in methods.values())
    model = Distiller(student=student, teacher=Teacher(teacher, None), methods=methods).train()
    found = {k: v for k, v in model(toys.batch()).items() if k.startswith("loss_distill_")}
    assert found.keys() == {f"loss_distill_{name}" for name in methods}
    sum(found.values()).backward()
    gradients = [p.grad for p in student.backbone.bottom_up.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)
    return found


@pytest.mark.parametrize("name", DENSE)
def test_dense_detectors(name):
    losses(DENSE[name](), DENSE[name](), recommended())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(toys.rcnn, toys.rcnn), (toys.rcnn, toys.cascade), (toys.retinanet, toys.rcnn)],
)
def test_detectors_with_proposals(student, teacher):
    losses(student(), teacher(), recommended())


def test_a_teacher_of_another_width():
    losses(toys.retinanet(), toys.retinanet(width=8, channels=16), recommended())


def test_fields_change_on_the_command_line_and_each_call_gives_a_new_node():
    cfg = OmegaConf.create({"model": {"methods": recommended()}}, flags={"allow_objects": True})
    name = next(key for key in cfg.model.methods if key != "_target_")
    changed = LazyConfig.apply_overrides(cfg, [f"model.methods.{name}.weight=0.125"])
    assert instantiate(changed.model.methods)[name].weight == 0.125
    changed.model.methods[name].weight = 9
    assert "weight" not in recommended()[name] or recommended()[name].weight != 9
