"""Prediction-guided feature imitation against loops over cells, and its properties."""

import math

import pytest
import torch

from d2kd.distiller import Distiller
from d2kd.knowledge import Knowledge
from d2kd.methods.base import Methods
from d2kd.methods.pfi import PFI, reduce
from d2kd.readers import get_reader
from d2kd.teacher import Teacher
from tests import toys

GRIDS = {"p3": (3, 4), "p4": (1, 1)}
REDUCTIONS = ("norm", "squared", "mean", "relative")


@pytest.fixture(scope="module")
def dense():
    return get_reader(toys.retinanet())  # 8 channels, 3 classes, 1 anchor in a cell


def knowledge(seed: int, n: int = 2, dtype=torch.float64) -> Knowledge:
    generator = torch.Generator().manual_seed(seed)
    return Knowledge(
        (24, 32),
        *(
            {
                k: torch.randn(n, channels, *size, generator=generator, dtype=dtype)
                for k, size in GRIDS.items()
            }
            for channels in (8, 3)
        ),
    )


def method_on(reader, **options) -> PFI:
    method = PFI(levels=list(GRIDS), **options)
    method.setup(reader, reader)
    return method


def loss(method: PFI, student: Knowledge, teacher: Knowledge) -> torch.Tensor:
    (value,) = method(student, teacher, None).values()
    return value


def requires_grad(seen: Knowledge) -> list[torch.Tensor]:
    return [x.requires_grad_() for x in (*seen.features.values(), *seen.logits.values())]


def difference_by_hand(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def loss_by_loop(student: Knowledge, teacher: Knowledge, reduction: str, scores: str) -> float:
    def score(logits: list[float]) -> list[float]:
        return [1 / (1 + math.exp(-x)) for x in logits] if scores == "sigmoid" else logits

    levels = []
    for level, (h, w) in GRIDS.items():
        for image in range(2):
            p, f = [], []
            for y in range(h):
                for x in range(w):
                    logits, features = (
                        [maps[level][image, :, y, x].tolist() for maps in both]
                        for both in (
                            (student.logits, teacher.logits),
                            (student.features, teacher.features),
                        )
                    )
                    p.append(difference_by_hand(*map(score, logits)))
                    f.append(difference_by_hand(*features))
            products = [a * b for a, b in zip(p, f, strict=True)]
            levels.append(
                {
                    "norm": math.sqrt(sum(x**2 for x in products)) / (h * w),
                    "squared": sum(x**2 for x in products) / (h * w),
                    "mean": sum(products) / (h * w),
                    "relative": sum(products) / sum(p),
                }[reduction]
            )
    return sum(levels) / len(levels)


@pytest.mark.parametrize("scores", ["logit", "sigmoid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equals_a_loop_over_cells(dense, reduction, scores):
    student, teacher = knowledge(1), knowledge(2)
    method = method_on(dense, reduction=reduction, scores=scores)
    expected = loss_by_loop(student, teacher, reduction, scores)
    assert expected > 1e-4
    assert loss(method, student, teacher).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scores", ["logit", "sigmoid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_equal_finite_differences(dense, reduction, scores):
    student, teacher = knowledge(1, n=1), knowledge(2, n=1)
    method = method_on(dense, reduction=reduction, scores=scores)
    inputs = requires_grad(student)
    if reduction == "relative":  # the logits carry none, by design: see below
        inputs = inputs[: len(GRIDS)]

    def value(*maps):
        maps = (*maps, *student.logits.values())[: 2 * len(GRIDS)]
        features, logits = (
            dict(zip(GRIDS, part, strict=True)) for part in (maps[: len(GRIDS)], maps[len(GRIDS) :])
        )
        return loss(method, Knowledge((24, 32), features, logits), teacher)

    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_teacher_itself_has_no_loss_and_no_gradient(dense, reduction):
    student, teacher = knowledge(1), knowledge(1)
    inputs = requires_grad(student)
    value = loss(method_on(dense, reduction=reduction), student, teacher)
    assert value.item() == 0 and value.requires_grad
    for gradient in torch.autograd.grad(value, inputs, allow_unused=True):
        assert gradient is None or not gradient.any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_features_that_differ_cost_nothing_where_predictions_agree(dense, reduction):
    student, teacher = knowledge(1), knowledge(2)
    student.logits = {k: x.clone() for k, x in teacher.logits.items()}
    assert loss(method_on(dense, reduction=reduction), student, teacher).item() == 0
    student.logits["p3"][0, 1, 2, 3] += 1
    inputs = requires_grad(student)
    value = loss(method_on(dense, reduction=reduction), student, teacher)
    gradient = torch.autograd.grad(value, inputs[0])[0]
    pulled = gradient.abs().sum(1).nonzero().tolist()
    assert value > 0 and pulled == [[0, 2, 3]]


def test_gradient_through_the_predictions_is_a_choice(dense):
    for options, expected in (
        ({}, True),
        ({"detach_weight": True}, False),
        ({"reduction": "relative"}, False),
    ):
        student, teacher = knowledge(1), knowledge(2)
        inputs = requires_grad(student)
        value = loss(method_on(dense, **options), student, teacher)
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        assert all(x is not None for x in gradients[: len(GRIDS)])
        assert all((x is not None) is expected for x in gradients[len(GRIDS) :])


def test_detaching_does_not_change_the_loss(dense):
    seen = knowledge(1), knowledge(2)
    free, detached = (loss(method_on(dense, detach_weight=d), *seen) for d in (False, True))
    assert free == detached


def test_relative_does_not_depend_on_how_far_predictions_are_apart(dense):
    student, teacher = knowledge(1), knowledge(2)
    near = Knowledge(
        (24, 32),
        student.features,
        {k: t + 1e-4 * (student.logits[k] - t) for k, t in teacher.logits.items()},
    )
    for reduction, factor in (
        ("relative", 1.0),
        ("mean", 1e-8),
        ("norm", 1e-8),
        ("squared", 1e-16),
    ):
        method = method_on(dense, reduction=reduction)
        far = loss(method, student, teacher).item()
        assert loss(method, near, teacher).item() == pytest.approx(far * factor, rel=1e-6)


def test_worked_example():
    # Products 3 and 4 in four cells: norm 5 / 4, mean square 25 / 4, mean 7 / 4, weighted 7 / 2.
    weight = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    error = torch.tensor([[[3.0, 4.0], [9.0, 9.0]]])
    found = [reduce(weight, error, name).item() for name in REDUCTIONS]
    assert found == pytest.approx([5 / 4, 25 / 4, 7 / 4, 7 / 2])


def test_confident_predictions_are_finite_in_fp32(dense):
    student, teacher = knowledge(1, dtype=torch.float32), knowledge(2, dtype=torch.float32)
    for seen, sign in ((student, -1), (teacher, 1)):
        seen.logits = {k: 200.0 + sign * x for k, x in seen.logits.items()}
    inputs = requires_grad(student)
    for reduction in REDUCTIONS:
        method = method_on(dense, reduction=reduction, scores="sigmoid")
        value = loss(method, student, teacher)
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        assert value == 0
        assert all(x is None or torch.isfinite(x).all() for x in gradients)


def test_uncertainty_changes_the_teachers_features(dense):
    class Twice(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    student, teacher = knowledge(1), knowledge(2)
    found = loss(method_on(dense, uncertainty=Twice()), student, teacher)
    teacher.features = {k: 2 * x for k, x in teacher.features.items()}
    assert found == loss(method_on(dense), student, teacher)


# ---- with detectors


def test_levels_are_those_of_both_heads(dense):
    fewer = dict(
        head_in_features=["p4", "p5"],
        anchor_generator=toys.DefaultAnchorGenerator(
            sizes=[[64], [128]], aspect_ratios=[1.0], strides=[16, 32]
        ),
    )
    for student, teacher in (
        (get_reader(toys.retinanet(**fewer)), dense),
        (dense, get_reader(toys.retinanet(**fewer))),
    ):
        method = PFI()
        method.setup(student, teacher)
        assert [(p.student, p.teacher) for p in method.pairs] == [("p4", "p4"), ("p5", "p5")]


def distiller(student, teacher, **options) -> Distiller:
    methods = Methods(pfi=PFI(**options))
    return Distiller(student=student, teacher=Teacher(teacher, None), methods=methods).train()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "student, teacher",
    [(toys.retinanet, toys.retinanet), (toys.fcos, toys.fcos), (toys.retinanet, toys.fcos)],
    ids=["RetinaNet", "FCOS", "RetinaNet of FCOS"],
)
def test_trains_the_student_only(student, teacher, reduction):
    torch.manual_seed(0)
    model = distiller(student(), teacher(channels=12), reduction=reduction)
    loss = model([toys.image(), toys.image([], seed=1)])["loss_distill_pfi"]
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    gradient = model.student.backbone.fpn_output3.weight.grad
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    assert (model.student.head.cls_score.weight.grad is None) is (reduction == "relative")
    assert all(p.grad is None for p in model.teacher.model.parameters())
    # Other widths: an adapter for each level, which trains too.
    shapes = {k: tuple(p.shape) for k, p in model.distillation.named_parameters()}
    assert shapes["pfi.adapters.p3.weight"] == (12, 8, 1, 1)
    assert all(p.grad is not None for p in model.distillation.parameters())


def test_no_adapter_where_widths_are_the_same():
    assert not list(distiller(toys.fcos(), toys.fcos()).distillation.parameters())


def test_batch_without_boxes_still_teaches():
    loss = distiller(toys.fcos(), toys.fcos())([toys.image([])])["loss_distill_pfi"]
    assert loss > 0 and loss.requires_grad


def test_bfloat16_is_finite():
    model = distiller(toys.retinanet(), toys.retinanet())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(toys.batch())["loss_distill_pfi"]
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and loss > 0
    assert torch.isfinite(model.student.head.cls_score.weight.grad).all()


def two_anchors():
    return toys.retinanet(
        head=toys.RetinaNetHead(
            input_shape=[toys.ShapeSpec(channels=8)] * 5,
            num_classes=3,
            conv_dims=[8],
            num_anchors=2,
        ),
        anchor_generator=toys.DefaultAnchorGenerator(
            sizes=[[4 * s] for s in toys.STRIDES], aspect_ratios=[0.5, 2.0], strides=toys.STRIDES
        ),
    )


@pytest.mark.parametrize(
    "teacher, levels, message",
    [
        (lambda: toys.retinanet(num_classes=5), None, r"same classes in the head's.* 3 and 5"),
        (toys.rcnn, None, r"same classes in the head's logits, found 3 and 1"),
        (two_anchors, None, r"same anchors in a cell, found 1 and 2"),
        (toys.retinanet, {"p3": "p4"}, r"RetinaNet, p3.*p4.* same stride, found 8 and 16"),
        (toys.retinanet, ["p2"], r"PFI.levels: .* found 'p2'"),
    ],
    ids=["classes", "R-CNN", "anchors", "stride", "level"],
)
def test_detectors_that_do_not_fit_are_refused(dense, teacher, levels, message):
    with pytest.raises(ValueError, match=message):
        PFI(levels=levels).setup(dense, get_reader(teacher()))


def test_level_that_the_head_does_not_see_is_refused(dense):
    fewer = toys.retinanet(
        head_in_features=["p4"],
        anchor_generator=toys.DefaultAnchorGenerator(
            sizes=[[64]], aspect_ratios=[1.0], strides=[16]
        ),
    )
    with pytest.raises(
        ValueError, match=r"PFI.levels: .* the head of RetinaNet sees, p4, found 'p3"
    ):
        PFI(levels=["p3"]).setup(get_reader(fewer), dense)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"reduction": "sum"}, r"PFI.reduction: expected one of norm.*relative, found 'sum'"),
        ({"scores": "softmax"}, r"PFI.scores: expected sigmoid or logit, found 'softmax'"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PFI(**options)
