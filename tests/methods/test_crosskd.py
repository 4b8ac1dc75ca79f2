"""CrossKD against loops over locations and against cases worked by hand."""

import copy
import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import nn

from d2kd import Distiller, Teacher
from d2kd.detectors import PointHead
from d2kd.knowledge import Knowledge
from d2kd.methods import FGD, Methods
from d2kd.methods.crosskd import CrossKD
from d2kd.readers import get_reader
from tests import toys
from tests.waits import Waits

K = 3
DETECTORS = ["RetinaNet", "FCOS", "ATSS", "GFL"]
BINS = 17  # of a side of GFL
BOXES = [[8.0, 8.0, 40.0, 40.0], [3.0, 20.0, 60.0, 50.0]], [[30.0, 5.0, 61.0, 33.0]]


def build(name: str, channels: int = 8, blocks: int = 2, **fields) -> nn.Module:
    """A detector with towers of some blocks, whose predictions differ between locations."""
    head = dict(
        input_shape=[ShapeSpec(channels=channels)] * 5,
        num_classes=K,
        conv_dims=[channels] * blocks,
    )
    if name == "RetinaNet":
        head = RetinaNetHead(**head, num_anchors=1)
        model = toys.retinanet(channels=channels, head=head, **fields)
    elif name == "FCOS":
        model = toys.fcos(channels=channels)
        model.head = FCOSHead(**head)
        nn.init.constant_(model.head.bbox_pred.bias, 1.0)  # most boxes have an area
    else:
        extra = dict(norm="LN")
        if name == "GFL":
            extra.update(box_channels=4 * BINS, quality=False)
        model = toys.point(name, channels=channels, head=PointHead(**head, **extra), **fields)
    for layer in (model.head.cls_score, model.head.bbox_pred):
        nn.init.normal_(layer.weight, std=0.2)
    nn.init.constant_(model.head.cls_score.bias, -1.0)
    return model


def show(method: CrossKD, student: nn.Module, teacher: nn.Module, size=(64, 64), n=2):
    """Set the method up, and run both detectors on random images."""
    method.setup(get_reader(student), get_reader(teacher))
    images = torch.randn(n, 3, *size)
    student_knowledge = get_reader(student.eval()).run(images, method.needs)
    with torch.no_grad():
        teacher_knowledge = get_reader(teacher.eval()).run(images, method.teacher_needs)
    return student_knowledge, teacher_knowledge


# ---- loops


def rest_of_tower(tower: nn.Sequential, block: int, x: torch.Tensor) -> torch.Tensor:
    activations = 0
    for layer in tower:
        if activations >= block:
            x = layer(x)
        activations += isinstance(layer, nn.ReLU)
    return x


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def giou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    union = area(a) + area(b) - intersection
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    return intersection / union - (hull - union) / hull


def decode(name: str, deltas: list[float], x: int, y: int, stride: int) -> list[float]:
    """The box that a head regresses at a cell, by the definition of its coding."""
    if name == "FCOS":  # distances to the sides in strides, from the cell's center
        left, top, right, bottom = (max(d, 0) * stride for d in deltas)
        cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
        return [cx - left, cy - top, cx + right, cy + bottom]
    if name == "RetinaNet":  # an anchor of 4 strides around the corner of the cell
        side, weights, clamp = 4 * stride, (1, 1), math.log(1000 / 16)
    else:  # of 8 strides
        side, weights, clamp = 8 * stride, (10, 5), math.log(1000 / 16)
    cx = x * stride + deltas[0] / weights[0] * side
    cy = y * stride + deltas[1] / weights[0] * side
    w, h = (side * math.exp(min(d / weights[1], clamp)) for d in deltas[2:])
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def kl(teacher: list[float], student: list[float]) -> float:
    log_p, log_q = (
        [v - math.log(sum(math.exp(u) for u in logits)) for v in logits]
        for logits in (teacher, student)
    )
    return sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def terms_by_loop(name, block, student, teacher, model, positives) -> dict[str, float]:
    """The two terms, location by location, through the layers of the teacher's head."""
    head, classification, regression, weights = model.head, 0.0, 0.0, 0.0
    for index, level in enumerate(model.head_in_features):
        stride = toys.STRIDES[index]
        cls = rest_of_tower(head.cls_subnet, block, student.taps[f"cls_tower.{block}"][level])
        box = rest_of_tower(head.bbox_subnet, block, student.taps[f"box_tower.{block}"][level])
        scale = head.scales[index] if name in ("ATSS", "GFL") else 1
        logits, deltas = head.cls_score(cls), scale * head.bbox_pred(box)
        n, _, h, w = logits.shape
        for i, y, x in ((i, y, x) for i in range(n) for y in range(h) for x in range(w)):
            p = [sigmoid(v) for v in teacher.logits[level][i, :, y, x].tolist()]
            for q, t in zip(map(sigmoid, logits[i, :, y, x].tolist()), p, strict=True):
                entropy = -t * math.log(q) - (1 - t) * math.log(1 - q)
                classification += abs(q - t) * entropy
            ours, target = (d[i, :, y, x].tolist() for d in (deltas, teacher.deltas[level]))
            weight = max(p)
            if name == "GFL":
                for side in range(4):
                    part = slice(side * BINS, (side + 1) * BINS)
                    regression += weight * kl(target[part], ours[part])
                weights += weight
            else:
                a, b = (decode(name, d, x, y, stride) for d in (ours, target))
                if (b[2] - b[0]) * (b[3] - b[1]) > 1e-6:
                    regression += weight * (1 - giou(a, b))
    return {
        "classification": classification / positives,
        "regression": regression / (weights if name == "GFL" else positives),
    }


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("name", DETECTORS)
def test_terms_equal_loops_over_locations(name, block):
    torch.manual_seed(0)
    method = CrossKD(block=block)
    teacher = build(name)
    knowledge = show(method, build(name), teacher)
    targets = toys.targets(*BOXES)
    matched = method.reader.assign(knowledge[0], targets)
    positives = sum(max(int((row >= 0).sum()), 1) for row in matched)
    assert positives > 2
    expected = terms_by_loop(name, block, *knowledge, teacher, positives)
    found = {term: value.item() for term, value in method(*knowledge, targets).items()}
    assert found == pytest.approx(expected, rel=1e-4)


# ---- by hand


def hand(logit, cross_logit, box, cross_box, positives=1, bins=None, **options) -> dict:
    """The terms of one image with one location and one class."""

    def knowledge(logit, box):
        maps = {"p3": torch.tensor(box).view(1, -1, 1, 1)} if bins else {}
        return Knowledge(
            logits={"p3": torch.tensor(logit).view(1, 1, 1, 1)},
            deltas=maps,
            boxes=None if bins else torch.tensor(box).view(1, 1, 4),
            anchors=torch.tensor([[0.0, 0.0, 8.0, 8.0]]),
        )

    method = CrossKD(block=1, **options)
    method.num_classes, method.padding, method.bins = 1, 0, bins
    matched = torch.full((1, max(positives, 1)), 0 if positives else -1)
    method.reader = SimpleNamespace(assign=lambda *_: matched)
    method.cross = lambda *_: knowledge(cross_logit, cross_box)
    targets = toys.targets([[0.0, 0.0, 8.0, 8.0]])
    return {k: v.item() for k, v in method(None, knowledge(logit, box), targets).items()}


BOX = [0.0, 0.0, 10.0, 10.0]


def test_classification_is_the_quality_focal_loss():
    # p' = 0.5 and p = 0.8: |p' - p| = 0.3 and BCE = log 2.
    terms = hand(math.log(4), 0.0, BOX, BOX)
    assert terms["classification"] == pytest.approx(0.3 * math.log(2))
    assert terms["regression"] == 0
    squared = hand(math.log(4), 0.0, BOX, BOX, gamma=2)
    assert squared["classification"] == pytest.approx(0.09 * math.log(2))


def test_regression_is_one_minus_giou_weighted_by_the_teachers_score():
    # Intersection 50, union 150, hull 150: the GIoU is 1/3. The teacher's score is 0.8.
    terms = hand(math.log(4), math.log(4), BOX, [5.0, 0.0, 15.0, 10.0])
    assert terms == pytest.approx({"classification": 0, "regression": 0.8 * 2 / 3})
    # Two boxes apart: no intersection, union 200, hull 300.
    terms = hand(math.log(4), math.log(4), BOX, [20.0, 0.0, 30.0, 10.0])
    assert terms["regression"] == pytest.approx(0.8 * (1 + 1 / 3))


def test_regression_of_distributions_is_a_weighted_mean_of_kl():
    # Two bins. One side of the teacher is (0.8, 0.2) and the cross-head's is (0.5, 0.5).
    sides = [math.log(4), 0.0, *[0.0] * 6]
    terms = hand(1.0, 1.0, sides, [0.0] * 8, positives=7, bins=2)
    expected = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    assert terms["regression"] == pytest.approx(expected, rel=1e-6)


def test_divisor_is_the_number_of_positives_and_at_least_one():
    one = hand(math.log(4), 0.0, BOX, [5.0, 0.0, 15.0, 10.0])
    four = hand(math.log(4), 0.0, BOX, [5.0, 0.0, 15.0, 10.0], positives=4)
    none = hand(math.log(4), 0.0, BOX, [5.0, 0.0, 15.0, 10.0], positives=0)
    assert none == one
    assert four == pytest.approx({k: v / 4 for k, v in one.items()})


def test_a_teachers_box_without_an_area_is_left_out():
    assert hand(0.0, 0.0, [5.0, 5.0, 5.0, 9.0], BOX)["regression"] == 0


def test_coefficients_multiply_and_zero_leaves_out():
    plain = hand(math.log(4), 0.0, BOX, [5.0, 0.0, 15.0, 10.0])
    other = hand(math.log(4), 0.0, BOX, [5.0, 0.0, 15.0, 10.0], classification=0.5, regression=3.0)
    assert other["classification"] == pytest.approx(0.5 * plain["classification"])
    assert other["regression"] == pytest.approx(3 * plain["regression"])
    assert list(hand(0.0, 1.0, BOX, BOX, regression=0.0)) == ["classification"]
    assert list(hand(0.0, 1.0, BOX, BOX, classification=0.0)) == ["regression"]


# ---- gradients


@pytest.mark.parametrize("name", DETECTORS)
def test_a_student_with_the_teachers_features_has_no_loss_and_no_gradient(name):
    teacher = build(name)
    student = copy.deepcopy(teacher)
    # The student's own last block and predictors play no part.
    for layer in (student.head.cls_score, student.head.bbox_pred, student.head.cls_subnet[-2]):
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    method = CrossKD(block=1)
    knowledge = show(method, student, teacher)
    terms = method(*knowledge, toys.targets(*BOXES))
    assert {k: v.item() for k, v in terms.items()} == {"classification": 0, "regression": 0}
    sum(terms.values()).backward()
    gradient = student.head.cls_subnet[0].weight.grad
    assert gradient.isfinite().all() and gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", DETECTORS)
def test_gradient_reaches_the_students_first_blocks_only(name):
    torch.manual_seed(0)
    student, teacher = build(name, blocks=3), build(name, blocks=3)
    method = CrossKD(block=2)
    knowledge = show(method, student, teacher)
    assert any(p.requires_grad for p in teacher.parameters())  # not even frozen
    sum(method(*knowledge, toys.targets(*BOXES)).values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.requires_grad for p in teacher.head.parameters())
    for tower in (student.head.cls_subnet, student.head.bbox_subnet):
        convolutions = [layer for layer in tower if isinstance(layer, nn.Conv2d)]
        for convolution in convolutions[:2]:
            assert convolution.weight.grad.isfinite().all() and convolution.weight.grad.any()
        assert convolutions[2].weight.grad is None
    assert student.head.cls_score.weight.grad is None
    assert student.head.bbox_pred.weight.grad is None
    assert student.backbone.fpn_output3.weight.grad.any()


@pytest.mark.parametrize("name", ["ATSS", "GFL"])
def test_gradients_equal_finite_differences(name):
    torch.manual_seed(0)
    method = CrossKD(block=1)
    student, teacher = show(method, build(name), build(name), n=1)
    targets = toys.targets(BOXES[0])
    maps = student.taps["cls_tower.1"], student.taps["box_tower.1"]
    for tower in maps:
        tower["p4"] = tower["p4"].detach().requires_grad_()
    loss = sum(method(student, teacher, targets).values())
    gradients = torch.autograd.grad(loss, [tower["p4"] for tower in maps])
    for tower, gradient in zip(maps, gradients, strict=True):
        step = 0.03 * gradient / gradient.norm()  # where rounding matters least
        values = []
        center = tower["p4"].detach()
        for sign in (1, -1):
            tower["p4"] = center + sign * step
            values.append(sum(method(student, teacher, targets).values()).item())
        tower["p4"] = center
        found = (gradient * step).sum().item()
        assert found == pytest.approx((values[0] - values[1]) / 2, rel=2e-2)


# ---- unusual batches and detectors


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[3.0, 3.0, 4.0, 4.0]],  # one pixel
        [[-90.0, -90.0, -50.0, -40.0]],  # outside the image
        [[0.0, 0.0, 64.0, 64.0]],
    ],
    ids=["none", "one pixel", "outside", "whole image"],
)
@pytest.mark.parametrize("name", DETECTORS)
def test_unusual_boxes_give_finite_losses_with_gradient(name, boxes):
    # The coarsest levels have one cell.
    student = build(name)
    method = CrossKD(block=2)
    knowledge = show(method, student, build(name), n=1)
    terms = method(*knowledge, toys.targets(boxes))
    assert set(terms) == {"classification", "regression"}
    assert all(x.isfinite() and x.requires_grad and x > 0 for x in terms.values())
    sum(terms.values()).backward()
    assert student.head.bbox_subnet[0].weight.grad.isfinite().all()


def test_one_cell():
    method = CrossKD(block=1)
    student = build("ATSS")
    knowledge = show(method, student, build("ATSS"), size=(8, 8), n=1)
    terms = method(*knowledge, toys.targets([], size=(8, 8)))
    assert all(x.isfinite() and x.requires_grad for x in terms.values())


def test_locations_outside_the_image_count_for_nothing():
    method = CrossKD(block=1)
    student, teacher = show(method, build("ATSS"), build("ATSS"), size=(64, 128), n=1)
    targets = toys.targets(BOXES[0], size=(64, 64))
    expected = method(student, teacher, targets)
    outside = teacher.centers[:, 0] >= 64
    assert outside.any()
    wrong = copy.copy(teacher)
    # Columns 8 to 15 of p3 are beyond the image.
    level = teacher.logits["p3"].clone()
    level[..., 8:] += 3
    wrong.logits = {**teacher.logits, "p3": level}
    wrong.boxes = torch.where(outside[None, :, None], teacher.boxes + 50, teacher.boxes)
    assert method(student, wrong, targets) == expected


@pytest.mark.parametrize("name", ["ATSS", "GFL"])
def test_no_operation_makes_a_gpus_host_wait(name):
    method = CrossKD(block=1)
    knowledge = show(method, build(name), build(name))
    targets = toys.targets(*BOXES)
    with Waits() as waits:
        sum(method(*knowledge, targets).values()).backward()
    assert waits.found == []


@pytest.mark.parametrize(
    "student, teacher", [("RetinaNet", "ATSS"), ("FCOS", "RetinaNet"), ("ATSS", "GFL")]
)
def test_student_and_teacher_may_differ_in_kind(student, teacher):
    method = CrossKD(block=2)
    knowledge = show(method, build(student), build(teacher))
    terms = method(*knowledge, toys.targets(*BOXES))
    assert all(x.isfinite() and x > 0 for x in terms.values())


def test_other_widths_get_one_adapter_for_each_tower():
    method = CrossKD(block=1)
    student = build("ATSS")
    knowledge = show(method, student, build("ATSS", channels=12))
    shapes = {name: tuple(p.shape) for name, p in method.named_parameters()}
    assert shapes == {
        f"adapters.{tower}.0.{name}": shape
        for tower in ("cls_tower", "box_tower")
        for name, shape in (("weight", (12, 8, 1, 1)), ("bias", (12,)))
    }
    sum(method(*knowledge, toys.targets(*BOXES)).values()).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in method.parameters())
    assert not list(CrossKD(block=1).parameters())


# ---- in a distiller


@pytest.mark.parametrize("channels", [8, 12])
@pytest.mark.parametrize("name", DETECTORS)
def test_distiller_trains(name, channels):
    model = Distiller(
        student=build(name),
        teacher=Teacher(build(name, channels=channels), None, fast=channels == 12),
        methods=Methods(crosskd=CrossKD(block=2), fgd=FGD()),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    before = copy.deepcopy(model.teacher.model.state_dict())
    inputs = [toys.image(), toys.image([], size=(50, 70), seed=1)]
    for _ in range(2):
        losses = model.train()(inputs)
        assert all(x.isfinite() for x in losses.values()) and losses["loss_distill_crosskd"] > 0
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    after = model.teacher.model.state_dict()
    assert all(torch.equal(x, after[key]) for key, x in before.items())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    own = [key for key in model.state_dict() if "crosskd" in key]
    assert len(own) == (4 if channels == 12 else 0)
    copied = copy.deepcopy(model)
    assert copied(inputs)["loss_distill_crosskd"] == model(inputs)["loss_distill_crosskd"]


@pytest.mark.parametrize("name", ["DDOD", "AutoAssign"])
def test_other_heads_with_two_towers(name):
    model = Distiller(
        student=toys.point(name),
        teacher=Teacher(toys.point(name, channels=12), None),
        methods=Methods(crosskd=CrossKD(block=2)),
        teacher_assigns=name == "DDOD",
    )
    loss = model.train()(toys.batch())["loss_distill_crosskd"]
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert all(p.grad.any() for p in model.distillation.parameters())


def test_bfloat16_is_finite_and_computed_in_fp32():
    model = Distiller(
        student=build("ATSS"),
        teacher=Teacher(build("ATSS"), None, dtype="bfloat16"),
        methods=Methods(crosskd=CrossKD(block=1)),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(toys.batch(size=(128, 128)))["loss_distill_crosskd"]
    assert loss.dtype == torch.float32 and loss.isfinite()


# ---- refusals


def test_published_values_are_the_defaults():
    fields = inspect.signature(CrossKD).parameters
    assert {k: fields[k].default for k in ("block", "gamma", "classification", "regression")} == {
        "block": 3,
        "gamma": 1.0,
        "classification": 1.0,
        "regression": 1.0,
    }


@pytest.mark.parametrize(
    "student, teacher, message",
    [
        (toys.rcnn, lambda: build("ATSS"), r"student .* found GeneralizedRCNN with no towers"),
        (lambda: build("ATSS"), toys.rcnn, r"teacher .* found GeneralizedRCNN with no towers"),
        (toys.retinanet, lambda: build("ATSS"), r"student .* at least 2 blocks .* cls_tower.1"),
        (lambda: build("ATSS"), toys.fcos, r"teacher .* at least 2 blocks .* found FCOS"),
    ],
)
def test_detectors_that_do_not_fit_are_refused(student, teacher, message):
    with pytest.raises(ValueError, match=f"CrossKD: expected a {message}"):
        CrossKD(block=2).setup(get_reader(student()), get_reader(teacher()))


def test_heads_on_other_strides_are_refused():
    fewer = toys.DefaultAnchorGenerator(sizes=[[64], [128]], aspect_ratios=[1.0], strides=[16, 32])
    student = build("RetinaNet", head_in_features=["p4", "p5"], anchor_generator=fewer)
    with pytest.raises(ValueError, match=r"CrossKD: .*same strides, found \[16, 32\] and \[8, 16"):
        CrossKD(block=1).setup(get_reader(student), get_reader(build("RetinaNet")))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(block=0), r"CrossKD.block: expected a whole number >= 1, found 0"),
        (dict(gamma=0.5), r"CrossKD.gamma: expected a number >= 1, found 0.5"),
        (dict(regression=-1.0), r"CrossKD.regression: expected a number >= 0"),
        (dict(classification=0, regression=0), r"one number > 0, found 0 for each"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CrossKD(**options)
