"""All methods: UET works on every detector, and no method makes the host wait for a GPU."""

import pytest
import torch
from detectron2.structures import PolygonMasks

from d2kd import Distiller, Teacher
from d2kd.methods import (
    CWD,
    FGD,
    LD,
    MGD,
    PFI,
    PGD,
    PKD,
    CrossKD,
    MCDropout,
    Methods,
    Mimic,
    RankMimic,
)
from tests import toys
from tests.waits import Waits

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


@pytest.mark.parametrize("kind", [*METHODS, PGD, LD])
def test_the_target_is_a_constant_whatever_the_uncertainty(kind):
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(()))

        def forward(self, features):
            return self.factor * features

    stage = Scale()
    build, methods = DETECTORS["GFL"], Methods(m=kind(uncertainty=stage))
    model = Distiller(student=build(), teacher=Teacher(build(), None), methods=methods)
    model(batch(False))["loss_distill_m"].backward()
    assert stage.factor.grad is None
    assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())


ALL = [*METHODS, PGD, RankMimic, lambda: CrossKD(block=1), LD]


def arguments_of(name, device="cpu"):
    """All methods that fit a detector, and the arguments that a distiller gives them, detached."""
    kinds = [k for k in ALL if name == "GFL" or k is not LD]
    methods = Methods(**{f"m{i}": kind() for i, kind in enumerate(kinds)})
    torch.manual_seed(0)
    build = DETECTORS[name]
    teacher = Teacher(build(), None)
    model = Distiller(student=build(), teacher=teacher, methods=methods).to(device)
    given = []
    first = model.distillation.m0
    handle = first.register_forward_pre_hook(lambda _, args: given.append(args))
    model(batch(False))
    handle.remove()
    student, teacher, targets = given[0]
    leaves = student.map_levels(lambda _, x: x.detach().requires_grad_())
    leaves.anchors, leaves.boxes = student.anchors, student.boxes.detach().requires_grad_()
    return model.distillation.values(), leaves, teacher, targets


@pytest.mark.parametrize("name", ["ATSS", "GFL"])  # Detectron2's own label assignment waits
def test_no_method_waits_for_a_gpu(name, monkeypatch):
    methods, *arguments = arguments_of(name)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)  # on a GPU, PGD makes no list of pairs
    for method in methods:
        with Waits() as waits:
            sum(method(*arguments).values()).backward()
        assert waits.found == [], type(method).__name__


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ATSS", "GFL"])
def test_no_method_waits_for_this_gpu(name):
    methods, *arguments = arguments_of(name, "cuda")
    for method in methods:
        sum(method(*arguments).values()).backward()  # for what is set up in the first call
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            sum(method(*arguments).values()).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


COEFFICIENTS = [
    *((kind, "weight") for kind in (Mimic, FGD, MGD, PKD, CWD, PFI, PGD, LD, CrossKD, RankMimic)),
    *((FGD, name) for name in ("alpha", "beta", "gamma", "lambd", "tau")),
    *((PGD, name) for name in ("alpha", "beta", "gamma", "delta", "level_step", "tau")),
    *((LD, name) for name in ("main", "valuable", "classification", "tau", "class_tau")),
    *((CrossKD, name) for name in ("classification", "regression", "gamma")),
    *((RankMimic, name) for name in ("classification", "localization", "tau")),
    (MGD, "alpha"),
    (CWD, "tau"),
]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize("kind, name", COEFFICIENTS)
def test_coefficients_that_are_no_finite_numbers_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.{name}: expected .*found {value!r}"):
        kind(**{name: value})
