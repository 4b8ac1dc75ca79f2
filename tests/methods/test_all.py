"""Every feature method with UET on every detector."""

import pytest
import torch
from detectron2.structures import PolygonMasks

from d2kd import Distiller, Teacher
from d2kd.methods import CWD, FGD, LD, MGD, PFI, PGD, PKD, MCDropout, Methods, Mimic
from tests import toys

DETECTORS = {
    "RetinaNet": toys.retinanet,
    "FCOS": toys.fcos,
    "ATSS": lambda **fields: toys.point("ATSS", **fields),
    "GFL": lambda **fields: toys.point("GFL", **fields),
    "Faster R-CNN": toys.rcnn,
    "Mask R-CNN": lambda **fields: toys.rcnn(mask=True, **fields),
    "Cascade R-CNN": toys.cascade,
}
METHODS = [Mimic, FGD, MGD, PKD, CWD, PFI, lambda **fields: PGD(on="neck", **fields)]


def batch(masks: bool) -> list[dict]:
    inputs = toys.batch()
    for x in inputs if masks else ():
        corners = [8.0, 8.0, 40.0, 8.0, 40.0, 40.0, 8.0, 40.0]
        x["instances"].gt_masks = PolygonMasks([[corners]])
    return inputs


@pytest.mark.parametrize("name", DETECTORS)
def test_each_method_takes_uncertainty(name):
    build = DETECTORS[name]
    methods = Methods(
        **{f"m{i}": kind(uncertainty=MCDropout()) for i, kind in enumerate(METHODS)},
        **{"ld": LD(uncertainty=MCDropout())} if name == "GFL" else {},
    )
    plain = Methods(
        **{f"m{i}": kind() for i, kind in enumerate(METHODS)},
        **{"ld": LD()} if name == "GFL" else {},
    )
    torch.manual_seed(0)
    student, teacher = build(), build()
    model = Distiller(student=student, teacher=Teacher(teacher, None), methods=methods)
    other = Distiller(student=student, teacher=model.teacher, methods=plain)
    inputs = batch(name == "Mask R-CNN")
    losses, clean = model(inputs), other(inputs)
    neck = [p for n, p in student.backbone.named_parameters() if n.startswith("fpn_")]
    for key in losses:
        if not key.startswith("loss_distill_"):
            continue
        assert torch.isfinite(losses[key]) and losses[key] != clean[key], key
        grads = torch.autograd.grad(losses[key], neck, retain_graph=True, allow_unused=True)
        assert sum(g.abs().sum() for g in grads if g is not None) > 0, key
