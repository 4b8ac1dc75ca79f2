"""PGD against the released code's numbers, and inside a distiller."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from d2kd import Distiller, Teacher
from d2kd.methods import Methods, Mimic
from d2kd.methods import pgd as pgd_module
from d2kd.methods.kernels.attention import softmax_attention
from d2kd.methods.kernels.pgd import channel_attention
from d2kd.methods.pgd import PGD
from d2kd.readers import get_reader
from d2kd.targets import Targets
from tests import toys

# Inputs and outputs of ChenhongyiYang/PGD @ 81c54d5 in float32. In entries named "intended", each
# image has its own masks.
REFERENCE = np.load(Path(__file__).parents[1] / "fixtures" / "pgd_reference.npz")
CLS, BOX = "cls_tower.1", "box_tower.1"
ALL_TERMS = {"foreground", "background", "attention", "regression", "regression_attention"}


def reference(name: str) -> torch.Tensor:
    return torch.from_numpy(REFERENCE[f"A.N3.{name}"])


# ---- the released code


@pytest.fixture
def maps():
    """The student's and the teacher's map, foreground and background."""
    return (
        reference("Fs").requires_grad_(),
        reference("Ft"),
        *(reference(name)[:, 0] for name in ("fg", "bg")),
    )


def assert_gradient(loss, student, name):
    (found,), expected = torch.autograd.grad(loss, student), reference(name)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * scale)
    assert found.norm().item() == pytest.approx(expected.norm().item(), rel=1e-6)


def test_attention_equals_released_code():
    pgd, features = PGD(), reference("Ft")
    for found, name in (
        (
            softmax_attention(features.abs().mean(1).flatten(1), pgd.tau).view_as(features[:, 0]),
            "S_t",
        ),
        (channel_attention(features, pgd.tau) * features.shape[1], "C_t"),
    ):
        torch.testing.assert_close(found, reference(name), rtol=1e-5, atol=1e-6)


def test_classification_equals_released_code_with_own_masks(maps):
    terms = PGD(alpha=0.08).classification(*maps, level_weight=1.25)
    assert terms["foreground"].item() == pytest.approx(1.25 * 0.08 * 10.8889055, rel=1e-6)
    assert terms["background"].item() == pytest.approx(1.25 * 0.04 * 26.1287365, rel=1e-6)
    assert terms["attention"].item() == pytest.approx(0.0008 * 39.7408333, rel=1e-6)
    total = sum(terms.values())
    assert total.item() == pytest.approx(2.42712021, rel=1e-6)
    assert_gradient(total, maps[0], "intended_grad")


def test_regression_equals_released_code(maps):
    student, teacher, foreground, _ = maps
    total = sum(PGD(alpha=0.08).regression(student, teacher, foreground).values())
    assert total.item() == pytest.approx(0.0955496132, rel=1e-6)
    assert_gradient(total, student, "reg_grad")


def test_without_foreground_its_terms_are_zero_and_in_the_graph(maps):
    student, teacher, foreground, background = maps
    pgd, nothing = PGD(), torch.zeros_like(foreground)
    terms = pgd.classification(student, teacher, nothing, background, 1.0)
    regression = pgd.regression(student, teacher, nothing)
    for value in (terms["foreground"], *regression.values()):
        assert value == 0 and value.requires_grad
    assert terms["background"] > 0


# ---- with detectors


def knowledge_of(detector, needs, images):
    return get_reader(detector).run(images, needs)


def run(pgd, student, teacher, targets, size=(64, 64), n=2):
    """Set PGD up and call it on random images. Returns the terms and both detectors' knowledge."""
    pgd.setup(get_reader(student), get_reader(teacher))
    images = torch.randn(n, 3, *size)
    from_student = knowledge_of(student, pgd.needs, images)
    with torch.no_grad():
        from_teacher = knowledge_of(teacher, pgd.teacher_needs, images)
    return pgd(from_student, from_teacher, targets), from_student, from_teacher


def boxes(*boxes_of_images, sizes=(64, 64)) -> Targets:
    found = [toys.image(x, size=sizes)["instances"] for x in boxes_of_images]
    return Targets.from_instances(found, "cpu")


BOXES = boxes([[8.0, 8.0, 40.0, 40.0], [3.0, 20.0, 60.0, 50.0]], [[30.0, 5.0, 61.0, 33.0]])


@pytest.mark.parametrize("chosen", [0, 1, 7])
def test_regression_on_the_foreground_alone_gives_the_same(chosen):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 2, 5, 4, 6, generator=generator, dtype=torch.float64)
    student, teacher = maps[0].clone().requires_grad_(), maps[1]
    fg = torch.zeros(2, 24, dtype=torch.float64)
    for image, count in enumerate((chosen, chosen // 2)):
        rows = torch.randperm(24, generator=generator)[:count]
        fg[image, rows] = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
    results = []
    for most in (None, chosen, 11):
        terms = PGD().regression(student, teacher, fg.view(2, 4, 6), most)
        (gradient,) = torch.autograd.grad(sum(terms.values()), student)
        results.append([gradient, *terms.values()])
    for other in results[1:]:
        for x, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("weighting", ["gaussian", "box"])
def test_a_gpus_bound_on_the_foreground_changes_nothing(weighting, monkeypatch):
    pgd = PGD(top_k=3, weighting=weighting)
    many = [[8.0 * i, 8.0 * i, 8.0 * i + 40, 8.0 * i + 40] for i in range(20)]
    targets = boxes(many, many[:1], sizes=(256, 256))
    expected, from_student, from_teacher = run(
        pgd, toys.fcos(), toys.fcos(), targets, size=(256, 256)
    )
    (_, foreground), _ = pgd.masks(from_teacher, targets)
    looked_at = []
    compare = pgd_module.compare_cells

    def count_cells(student, teacher, tau):
        looked_at.append(student.shape[2])
        return compare(student, teacher, tau)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        patch.setattr(pgd_module, "compare_cells", count_cells)
        torch.testing.assert_close(pgd(from_student, from_teacher, targets), expected)
    # Of 1024 cells of the finest level, boxes may choose 60; the first image has more than 3.
    assert foreground["p3"][0].ne(0).sum() > 3
    assert looked_at[:2] == [1024, 60 if weighting == "gaussian" else 1024]


def test_forward_is_the_sum_of_its_levels_with_growing_weights():
    pgd = PGD(top_k=9, level_step=0.5)
    terms, from_student, from_teacher = run(pgd, toys.fcos(), toys.fcos(), BOXES)
    (cls, reg), background = pgd.masks(from_teacher, BOXES)
    expected = dict.fromkeys(ALL_TERMS, 0.0)
    for i, level in enumerate(("p3", "p4", "p5", "p6", "p7")):
        for name, value in (
            *pgd.classification(
                *(from_student.taps[CLS][level], from_teacher.taps[CLS][level]),
                *(cls[level], background[level], [1, 1.5, 2, 2.5, 3][i]),
            ).items(),
            *pgd.regression(
                from_student.taps[BOX][level], from_teacher.taps[BOX][level], reg[level]
            ).items(),
        ):
            expected[name] += value.item()
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, rel=1e-5)


def test_masks_lie_where_the_boxes_are():
    detector = toys.fcos()
    pgd = PGD(weighting="box")
    _, _, from_teacher = run(pgd, detector, detector, BOXES)
    (cls, _), background = pgd.masks(from_teacher, BOXES)
    expected = torch.zeros(8, 8)
    expected[1:4, 4:8] = 1  # centers 36 to 60 in (30, 61), 12 to 28 in (5, 33)
    assert torch.equal(cls["p3"][1], expected)
    assert torch.equal(background["p3"][1], 1 - expected)


@pytest.mark.parametrize("candidates", ["box", "image"])
def test_a_cell_gets_the_largest_weight_of_its_anchors(candidates):
    detector = toys.retinanet(
        head=RetinaNetHead(
            input_shape=[ShapeSpec(channels=8)] * 5,
            num_classes=3,
            conv_dims=[8],
            num_anchors=3,
        ),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[4 * s] for s in toys.STRIDES],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=toys.STRIDES,
        ),
    )
    pgd = PGD(weighting="quality", candidates=candidates, top_k=9)
    _, _, from_teacher = run(pgd, detector, detector, BOXES)
    (cls, _), background = pgd.masks(from_teacher, BOXES)
    q = torch.zeros(2, from_teacher.boxes.shape[1])
    logits = get_reader(detector).flatten(from_teacher.logits, 3).sigmoid()
    for i in range(2):
        for box, c, there in zip(BOXES.boxes[i], BOXES.classes[i], BOXES.valid[i], strict=True):
            x, y = from_teacher.centers.T
            inside = (x > box[0]) & (y > box[1]) & (x < box[2]) & (y < box[3]) & there
            low, high = (
                from_teacher.boxes[i, :, :2].max(box[:2]),
                from_teacher.boxes[i, :, 2:].min(box[2:]),
            )
            common = (high - low).clamp(min=0).prod(1)
            area = (from_teacher.boxes[i, :, 2:] - from_teacher.boxes[i, :, :2]).prod(1)
            iou = common / (area + (box[2:] - box[:2]).prod() - common)
            mine = logits[i, :, c] ** 0.2 * iou**0.8
            pool = mine * inside if candidates == "box" else mine
            mine[pool < pool.topk(9).values[-1]] = 0
            q[i] = torch.maximum(q[i], mine * inside * there)
    expected = q[:, : 64 * 3].view(2, 8, 8, 3).amax(-1)
    assert expected.any()
    torch.testing.assert_close(cls["p3"], expected, rtol=1e-5, atol=0)
    assert not (background["p3"] * cls["p3"]).any() and background["p3"].shape == (2, 8, 8)


def test_neck_takes_the_classification_recipe():
    pgd = PGD(on="neck", top_k=9)
    terms, from_student, from_teacher = run(pgd, toys.retinanet(), toys.retinanet(width=6), BOXES)
    assert set(terms) == {"foreground", "background", "attention"}
    ((foreground,), background) = pgd.masks(from_teacher, BOXES)
    expected = sum(
        sum(
            pgd.classification(
                *(from_student.features[level], from_teacher.features[level]),
                *(foreground[level], background[level], 1 + 0.25 * i),
            ).values()
        )
        for i, level in enumerate(("p3", "p4", "p5", "p6", "p7"))
    )
    torch.testing.assert_close(sum(terms.values()), expected)


def test_neck_pairs_the_strides_that_both_have():
    pgd = PGD(on="neck")
    pgd.setup(get_reader(toys.retinanet()), get_reader(toys.rcnn()))
    assert [(p.student, p.teacher) for p in pgd.pairs] == [(f"p{i}", f"p{i}") for i in (3, 4, 5, 6)]


@pytest.mark.parametrize("on", ["towers", "neck"])
def test_other_widths_get_adapters(on):
    pgd = PGD(on=on)
    terms, _, _ = run(pgd, toys.fcos(), toys.fcos(channels=12), BOXES)
    adapters = dict(pgd.adapters.named_parameters())
    assert len(adapters) == 2 * 5 * (2 if on == "towers" else 1)  # weight and bias
    sum(terms.values()).backward()
    for name, parameter in adapters.items():
        assert parameter.grad.isfinite().all()
        # No coarse cell has its center in a box, so its regression tower has no gradient.
        if name.startswith(("cls_tower", "features", "box_tower.p3")):
            assert parameter.grad.any()


def test_same_widths_need_no_parameters():
    pgd = PGD()
    pgd.setup(get_reader(toys.fcos()), get_reader(toys.fcos(width=6)))
    assert not pgd.state_dict()


def test_a_grid_of_another_size_is_brought_to_the_teachers():
    pgd = PGD()
    detector = toys.fcos()
    _, from_student, from_teacher = run(pgd, detector, toys.fcos(), BOXES)
    same = pgd(from_student, from_teacher, BOXES)
    wide = {k: torch.nn.functional.pad(v, (0, 1)) for k, v in from_student.taps[CLS].items()}
    terms = pgd(
        dataclasses.replace(from_student, taps={**from_student.taps, CLS: wide}),
        from_teacher,
        BOXES,
    )
    assert all(torch.isfinite(x) for x in terms.values())
    assert terms["regression"] == same["regression"] and terms["background"] != same["background"]


def test_padding_of_the_teacher_is_passed_on():
    teacher = get_reader(toys.fcos())
    object.__setattr__(teacher, "padding", 32)
    pgd = PGD()
    pgd.setup(get_reader(toys.fcos()), teacher)
    from_teacher = teacher.run(torch.randn(1, 3, 64, 128), pgd.teacher_needs)
    _, background = pgd.masks(from_teacher, boxes([[8.0, 8.0, 40.0, 40.0]], sizes=(40, 70)))
    assert background["p3"][0, :, 11].all()  # center 92, within 96
    assert not background["p3"][0, :, 12:].any()


def test_uncertainty_changes_the_teachers_maps_only():
    class Twice(torch.nn.Module):
        def forward(self, features):
            return 2 * features

    student, teacher = toys.fcos(), toys.fcos()
    plain, from_student, from_teacher = run(PGD(), student, teacher, BOXES)
    pgd = PGD(uncertainty=Twice())
    pgd.setup(get_reader(student), get_reader(teacher))
    doubled = dataclasses.replace(
        from_teacher,
        taps={name: {k: 2 * v for k, v in from_teacher.taps[name].items()} for name in (CLS, BOX)},
    )
    found = pgd(from_student, from_teacher, BOXES)
    assert found["background"] != plain["background"]
    pgd.uncertainty = torch.nn.Identity()
    expected = pgd(from_student, doubled, BOXES)
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}


def test_gradient_reaches_the_student_only():
    student, teacher = toys.fcos(), toys.fcos()
    pgd = PGD()
    pgd.setup(get_reader(student), get_reader(teacher))
    images = torch.randn(2, 3, 64, 64)
    terms = pgd(
        knowledge_of(student, pgd.needs, images),
        knowledge_of(teacher, pgd.teacher_needs, images),
        BOXES,
    )
    sum(terms[k] for k in ("foreground", "background")).backward()
    assert student.head.cls_subnet[0].weight.grad.any()
    # The teacher is not frozen here. Masks and attention must not train its predictions.
    assert teacher.head.cls_score.weight.grad is None
    assert teacher.head.bbox_pred.weight.grad is None


@pytest.mark.parametrize("weighting", ["gaussian", "quality", "box", "center"])
@pytest.mark.parametrize(
    "found",
    [
        [],
        [[3.0, 3.0, 4.0, 4.0]],  # one pixel
        [[5.0, 5.0, 5.0, 5.0]],  # no area
        [[-90.0, -90.0, -50.0, -40.0]],  # outside the image
        [[0.0, 0.0, 64.0, 64.0]],  # the whole image: no background
    ],
    ids=["none", "one pixel", "empty", "off the image", "whole image"],
)
def test_edge_boxes_give_finite_losses_with_gradient(found, weighting):
    # The coarsest levels have one cell.
    student = toys.fcos()
    pgd = PGD(weighting=weighting)
    terms, _, _ = run(pgd, student, toys.fcos(), boxes(found), n=1)
    assert set(terms) == ALL_TERMS
    assert all(torch.isfinite(x) and x.requires_grad for x in terms.values())
    sum(terms.values()).backward()
    assert torch.isfinite(student.head.bbox_subnet[0].weight.grad).all()
    assert student.head.cls_subnet[0].weight.grad.any()


@pytest.mark.parametrize(
    "build, on", [(toys.retinanet, "towers"), (toys.fcos, "towers"), (toys.rcnn, "neck")]
)
def test_distiller_trains(build, on):
    model = Distiller(
        student=build(channels=8),
        teacher=Teacher(build(channels=12), None),
        methods=Methods(pgd=PGD(on=on)),
    )
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    adapter = next(model.distillation.parameters())
    before = adapter.clone()
    inputs = [toys.image(), toys.image([], size=(50, 70), seed=1)]
    for _ in range(2):
        losses = model(inputs)
        assert all(torch.isfinite(x) for x in losses.values()) and losses["loss_distill_pgd"] > 0
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert not torch.equal(adapter, before)
    own = {k for k in model.state_dict() if k.startswith("distillation.")}
    assert all(k.startswith("distillation.pgd.adapters.") for k in own)


# ---- refusals


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(on="fpn"), r"PGD.on: expected towers or neck, found 'fpn'"),
        (dict(candidates="all"), r"PGD.candidates: expected box or image, found 'all'"),
        (dict(weighting="flat"), r"PGD.weighting: expected one of gaussian, .*, found 'flat'"),
        (dict(top_k=0), r"PGD.top_k: expected a whole number >= 1, found 0"),
        (dict(xi_reg=1.5), r"PGD.xi_reg: expected a number >= 0 and <= 1, found 1.5"),
        (dict(tau=0), r"PGD.tau: expected a number > 0, found 0"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PGD(**fields)


def test_detectors_without_towers_are_pointed_to_the_neck():
    with pytest.raises(ValueError, match=r'GeneralizedRCNN\. Use PGD\(on="neck"\)'):
        PGD().setup(get_reader(toys.retinanet()), get_reader(toys.rcnn()))


def test_teacher_with_other_classes_is_refused():
    student, teacher = toys.fcos(num_classes=3), toys.fcos(num_classes=5)
    with pytest.raises(ValueError, match=r"scores the student's 3 classes, found 5"):
        PGD().setup(get_reader(student), get_reader(teacher))


def test_heads_on_other_strides_are_refused():
    student = dataclasses.replace(get_reader(toys.fcos()), head_in_features=("p3", "p4", "p5"))
    with pytest.raises(ValueError, match=r"found \[8, 16, 32\] and \[8, 16, 32, 64, 128\]"):
        PGD().setup(student, get_reader(toys.fcos()))


def test_pgd_runs_together_with_another_method():
    methods = Methods(pgd=PGD(), mimic=Mimic())
    model = Distiller(student=toys.fcos(), teacher=Teacher(toys.fcos(), None), methods=methods)
    losses = model.train()(toys.batch())
    assert losses["loss_distill_pgd"] > 0 and losses["loss_distill_mimic"] > 0
