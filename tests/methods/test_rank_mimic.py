"""Rank mimicking against loops over objects, and its invariances."""

import copy
import math

import pytest
import torch

from d2kd.distiller import Distiller
from d2kd.knowledge import Knowledge
from d2kd.methods.base import Methods
from d2kd.methods.rank_mimic import RankMimic, _kl
from d2kd.readers import get_reader
from d2kd.targets import Targets
from d2kd.teacher import Teacher
from tests import toys

K, A = 3, 2
GRIDS = {"p3": (3, 4), "p4": (2, 2)}
R = A * sum(h * w for h, w in GRIDS.values())


class StubReader:
    """A dense detector whose label assignment is given."""

    num_logits = K

    def __init__(self, assigned: torch.Tensor):
        self.assigned = assigned
        self.calls = []

    def assign(self, outputs: Knowledge, targets: Targets) -> torch.Tensor:
        self.calls.append((outputs, torch.is_grad_enabled()))
        return self.assigned


def knowledge(n: int, seed: int, dtype=torch.float64, spread: float = 3.0) -> Knowledge:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    corner = normal(n, R, 2) * 10 + 10
    sides = normal(n, R, 2).abs() * 20 + 1
    return Knowledge(
        (32, 32),
        logits={k: spread * normal(n, A * K, *size) for k, size in GRIDS.items()},
        boxes=torch.cat([corner, corner + sides], -1),
    )


def targets(counts, seed: int = 0, dtype=torch.float64) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    n, g = len(counts), max(counts)
    valid = torch.arange(g) < torch.tensor(counts)[:, None]
    corner = torch.rand(n, g, 2, generator=generator, dtype=dtype) * 20
    sides = torch.rand(n, g, 2, generator=generator, dtype=dtype) * 30 + 1
    boxes = torch.cat([corner, corner + sides], -1) * valid[..., None]
    classes = torch.where(valid, torch.randint(0, K, (n, g), generator=generator), -1)
    return Targets(boxes, classes, valid, torch.full((n, 2), 32), tuple(counts))


def assignment(counts, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(-1, c, (R,), generator=generator) for c in counts])


def method_on(assigned: torch.Tensor, **options) -> RankMimic:
    method = RankMimic(**options)
    method.reader = StubReader(assigned)
    return method


def requires_grad(outputs: Knowledge) -> list[torch.Tensor]:
    return [x.requires_grad_() for x in (*outputs.logits.values(), outputs.boxes)]


def set_logit(outputs: Knowledge, image: int, r: int, c: int, value: float) -> None:
    level, column, y, x = place(r)
    outputs.logits[level][image, column * K + c, y, x] = value


def place(r: int) -> tuple[str, int, int, int]:
    """Level, anchor in the cell, row and column of anchor r: its meaning in `Knowledge`."""
    for level, (h, w) in GRIDS.items():
        if r < h * w * A:
            return level, r % A, r // A // w, r // A % w
        r -= h * w * A
    raise IndexError


# ---- the same terms by loops


def iou_by_hand(a, b) -> float:
    width, height = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0.0) for i in (0, 1))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


def score_by_hand(outputs, truth, term, scores, image, r, g) -> float:
    if term == "localization":
        return iou_by_hand(outputs.boxes[image, r].tolist(), truth.boxes[image, g].tolist())
    level, anchor, y, x = place(r)
    logit = outputs.logits[level][image, anchor * K + int(truth.classes[image, g]), y, x].item()
    return 1 / (1 + math.exp(-logit)) if scores == "sigmoid" else logit


def loss_by_loop(student, teacher, truth, assigned, term, scores="sigmoid", tau=1.0, sort=False):
    total = 0.0
    for image in range(len(assigned)):
        losses = []
        for g in range(truth.valid.shape[1]):
            candidates = [r for r in range(R) if assigned[image, r] == g]
            if len(candidates) < 2:
                continue
            s, t = (
                [score_by_hand(outputs, truth, term, scores, image, r, g) for r in candidates]
                for outputs in (student, teacher)
            )
            if sort:
                s, t = sorted(s), sorted(t)
            q, p = ([math.exp(v / tau) for v in values] for values in (s, t))
            q, p = ([v / sum(values) for v in values] for values in (q, p))
            losses.append(sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True)))
        total += sum(losses) / max(len(losses), 1)
    return total / len(assigned)


COUNTS = (4, 1, 0, 6)


@pytest.mark.parametrize("sort", [False, True], ids=["aligned", "sorted"])
@pytest.mark.parametrize("scores, tau", [("sigmoid", 1.0), ("sigmoid", 0.2), ("logit", 2.0)])
def test_terms_equal_a_loop_over_objects(scores, tau, sort):
    student, teacher = knowledge(4, 1), knowledge(4, 2)
    truth, assigned = targets(COUNTS), assignment(COUNTS)
    method = method_on(assigned, scores=scores, tau=tau, sort=sort)
    terms = method(student, teacher, truth)
    assert list(terms) == ["classification", "localization"]
    for term, value in terms.items():
        expected = loss_by_loop(student, teacher, truth, assigned, term, scores, tau, sort)
        assert expected > 1e-5
        assert value.item() == pytest.approx(expected, rel=1e-10)


def test_coefficients_multiply_and_zero_leaves_out():
    outputs = knowledge(4, 1), knowledge(4, 2), targets(COUNTS)
    whole = method_on(assignment(COUNTS))(*outputs)
    half = method_on(assignment(COUNTS), classification=0, localization=0.5, weight=7)(*outputs)
    assert list(half) == ["localization"]
    torch.testing.assert_close(half["localization"], whole["localization"] / 2)


def test_fp32_is_close_to_fp64():
    outputs = knowledge(4, 1), knowledge(4, 2)
    method = method_on(assignment(COUNTS), localization=0)
    exact, single = (
        method(*(x.map_levels(lambda _, x, d=dtype: x.to(d)) for x in outputs), targets(COUNTS))
        for dtype in (torch.float64, torch.float32)
    )
    assert single["classification"].dtype == torch.float32
    assert single["classification"].item() == pytest.approx(
        exact["classification"].item(), rel=1e-4
    )


@pytest.mark.parametrize("sort", [False, True], ids=["aligned", "sorted"])
def test_gradients_equal_finite_differences(sort):
    counts = (3,)
    student, teacher = knowledge(1, 1), knowledge(1, 2)
    method = method_on(assignment(counts), sort=sort)
    levels = list(student.logits)

    def loss(*inputs):
        outputs = Knowledge(logits=dict(zip(levels, inputs, strict=False)), boxes=inputs[-1])
        return tuple(method(outputs, teacher, targets(counts)).values())

    assert torch.autograd.gradcheck(loss, requires_grad(student))


# ---- what must and what must not change the loss


@pytest.mark.parametrize("options", [{}, {"scores": "logit"}, {"sort": True}])
def test_the_teacher_itself_has_no_loss_and_no_gradient(options):
    student, teacher = knowledge(4, 1), knowledge(4, 1)
    inputs = requires_grad(student)
    loss = sum(method_on(assignment(COUNTS), **options)(student, teacher, targets(COUNTS)).values())
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, inputs):
        assert gradient.abs().max() < 1e-15


def test_only_the_classes_of_candidates_count():
    student, teacher = knowledge(4, 1, torch.float32), knowledge(4, 2, torch.float32)
    truth, assigned = targets(COUNTS, dtype=torch.float32), assignment(COUNTS)
    inputs = requires_grad(student)
    method = method_on(assigned, scores="logit")
    loss = sum(method(student, teacher, truth).values())
    gradients = dict(zip((*GRIDS, "boxes"), torch.autograd.grad(loss, inputs), strict=True))
    sizes = [int((assigned[i] == g).sum()) for i in range(4) for g in range(COUNTS[i])]
    assert min(sizes) >= 2  # so that all objects are ranked
    for image in range(4):
        for r in range(R):
            level, anchor, y, x = place(r)
            found = gradients[level][image, anchor * K : (anchor + 1) * K, y, x] != 0
            g = int(assigned[image, r])
            wanted = [g >= 0 and c == truth.classes[image, g] for c in range(K)]
            assert found.tolist() == wanted
    assert not gradients["boxes"][assigned < 0].any()


def test_overflow_far_from_objects_stays_there():
    student, teacher = knowledge(1, 1, torch.float32), knowledge(1, 2, torch.float32)
    assigned = torch.full((1, R), -1)
    assigned[0, :3] = 0
    expected = method_on(assigned, scores="logit")(student, teacher, targets((1,)))
    for outputs in (student, teacher):
        for c in range(K):
            set_logit(outputs, 0, 7, c, math.inf)
        outputs.boxes[0, 7] = math.inf
    inputs = requires_grad(student)
    terms = method_on(assigned, scores="logit")(student, teacher, targets((1,)))
    assert terms == expected
    gradients = torch.autograd.grad(sum(terms.values()), inputs)
    assert all(torch.isfinite(x).all() for x in gradients)


def test_an_object_with_one_candidate_neither_adds_nor_counts():
    student, teacher = knowledge(1, 1), knowledge(1, 2)
    assigned = torch.full((1, R), -1)
    assigned[0, 2:6] = 0
    without = method_on(assigned.clone())(student, teacher, targets((2,)))
    assigned[0, 11] = 1
    inputs = requires_grad(student)
    terms = method_on(assigned)(student, teacher, targets((2,)))
    assert terms == without and all(v > 0 for v in terms.values())
    gradients = torch.autograd.grad(sum(terms.values()), inputs)
    assert not gradients[-1][0, 11].any()


def test_a_common_shift_of_an_objects_logits_changes_nothing():
    student, teacher = knowledge(1, 1), knowledge(1, 2)
    truth, assigned = targets((3,)), assignment((3,))
    method = method_on(assigned, scores="logit", localization=0)
    before = method(student, teacher, truth)["classification"]
    for r in range(R):
        if assigned[0, r] == 1:
            level, anchor, y, x = place(r)
            channel = anchor * K + truth.classes[0, 1]
            student.logits[level][0, channel, y, x] += 40
    after = method(student, teacher, truth)["classification"]
    torch.testing.assert_close(after, before)


def ranks(options: dict, values_s, values_t) -> float:
    """The loss on one object with a candidate for each logit."""
    student, teacher = knowledge(1, 1), knowledge(1, 2)
    truth, assigned = targets((1,)), torch.full((1, R), -1)
    for r, (s, t) in enumerate(zip(values_s, values_t, strict=True)):
        assigned[0, r] = 0
        set_logit(student, 0, r, int(truth.classes[0, 0]), s)
        set_logit(teacher, 0, r, int(truth.classes[0, 0]), t)
    method = method_on(assigned, localization=0, **options)
    return method(student, teacher, truth)["classification"].item()


def test_another_best_anchor_gives_a_loss_unless_scores_are_sorted():
    assert ranks({}, (2.0, -1.0, 0.5), (-1.0, 2.0, 0.5)) > 0.01
    assert ranks({"sort": True}, (2.0, -1.0, 0.5), (-1.0, 2.0, 0.5)) == 0


def test_worked_example():
    # Teacher 1/4 and 3/4, student 1/2 and 1/2: KL(teacher || student), not KL(student || teacher).
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    found = ranks({"scores": "logit"}, (1.0, 1.0), (0.0, math.log(3)))
    assert found == pytest.approx(expected, rel=1e-12)
    assert ranks({"scores": "logit", "tau": 2.0}, (2.0, 2.0), (0.0, 2 * math.log(3))) == (
        pytest.approx(expected, rel=1e-12)
    )


def test_large_logits_do_not_overflow():
    assert ranks({"scores": "logit"}, (900.0, 0.0), (0.0, 900.0)) == pytest.approx(900)


@pytest.mark.parametrize("counts", [(0,), (0, 0)])
def test_batch_without_boxes_is_a_zero_with_gradient(counts):
    student, teacher = knowledge(len(counts), 1), knowledge(len(counts), 2)
    inputs = requires_grad(student)
    assigned = torch.full((len(counts), R), -1)
    terms = method_on(assigned)(student, teacher, targets(counts))
    assert all(v.item() == 0 and v.requires_grad for v in terms.values())
    for gradient in torch.autograd.grad(sum(terms.values()), inputs):
        assert not gradient.any()


def test_boxes_off_the_image_and_without_area_are_finite():
    student, teacher = knowledge(1, 1), knowledge(1, 2)
    student.boxes[0, :4] = 5.0  # no area
    truth = targets((3,))
    truth.boxes[0] = torch.tensor([[-90.0, -90, -50, -40], [5, 5, 5, 5], [3, 3, 4, 4]])
    inputs = requires_grad(student)
    terms = method_on(assignment((3,)))(student, teacher, truth)
    gradients = torch.autograd.grad(sum(terms.values()), inputs)
    assert all(torch.isfinite(v) for v in terms.values())
    assert all(torch.isfinite(x).all() for x in gradients)


@pytest.mark.parametrize("assigner", ["student", "teacher"])
def test_one_assignment_serves_both_without_gradient(assigner):
    student, teacher = knowledge(4, 1), knowledge(4, 2)
    requires_grad(student)
    method = method_on(assignment(COUNTS), assigner=assigner)
    method(student, teacher, targets(COUNTS))
    ((outputs, with_gradient),) = method.reader.calls
    assert outputs is (student if assigner == "student" else teacher)
    assert not with_gradient


# ---- with detectors


def nine_anchors():
    return dict(
        head=toys.RetinaNetHead(
            input_shape=[toys.ShapeSpec(channels=8)] * 5,
            num_classes=3,
            conv_dims=[8],
            num_anchors=9,
        ),
        anchor_generator=toys.DefaultAnchorGenerator(
            sizes=[[x * 4 * s for x in (1.0, 1.26, 1.59)] for s in toys.STRIDES],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=toys.STRIDES,
        ),
    )


def distiller(build, **options) -> Distiller:
    torch.manual_seed(0)
    teacher = Teacher(build(), None)
    student = build()
    # As after some training: predictions that differ between locations.
    for model in (student, teacher.model):
        torch.nn.init.normal_(model.head.cls_score.weight, std=0.3)
        torch.nn.init.normal_(model.head.bbox_pred.weight, std=0.1)
    methods = Methods(rank=RankMimic(**options))
    return Distiller(student=student, teacher=teacher, methods=methods).train()


BOXES = [(4, 6, 40, 45), (20, 10, 60, 50), (1, 1, 63, 63)]
DETECTORS = {
    "RetinaNet": toys.retinanet,
    "RetinaNet, 9 anchors": lambda: toys.retinanet(**nine_anchors()),
    "FCOS": toys.fcos,
}


@pytest.mark.parametrize("build", DETECTORS.values(), ids=DETECTORS)
@pytest.mark.parametrize("sort", [False, True], ids=["aligned", "sorted"])
def test_trains_the_student_only(build, sort):
    model = distiller(build, sort=sort)
    inputs = [toys.image(BOXES), toys.image([], seed=1)]
    loss = model(inputs)["loss_distill_rank"]
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    for layer in (model.student.head.cls_score, model.student.head.bbox_pred):
        gradient = layer.weight.grad
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    assert all(p.grad is None for p in model.teacher.model.parameters())
    assert not list(model.distillation.parameters())


@pytest.mark.parametrize("build", DETECTORS.values(), ids=DETECTORS)
def test_batch_without_boxes_keeps_its_graph(build):
    loss = distiller(build)([toys.image([]), toys.image([], seed=1)])["loss_distill_rank"]
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()


def test_bfloat16_is_finite():
    model = distiller(toys.retinanet)  # Detectron2's FCOS does not run in bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model([toys.image(BOXES)])["loss_distill_rank"]
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and loss > 0
    assert torch.isfinite(model.student.head.cls_score.weight.grad).all()


def test_a_copied_distiller_assigns_by_its_own_student():
    copied = copy.deepcopy(distiller(toys.fcos))
    assert copied.distillation["rank"].reader.detector is copied.student


@pytest.mark.parametrize(
    "student, teacher, message",
    [
        (toys.rcnn, toys.retinanet, r"RankMimic: expected a dense detector.* as student.*R-?CNN"),
        (toys.retinanet, toys.rcnn, r"expected a dense detector.* as teacher"),
        (
            lambda: toys.rcnn(num_classes=1),
            lambda: toys.rcnn(num_classes=1),
            r"expected a dense detector.* as student",
        ),
        (toys.fcos, lambda: toys.point("ATSS"), r"RankMimic: .*same offset of the anchors"),
        (toys.fcos, lambda: toys.fcos(num_classes=5), r"same number of classes.* 3 and 5"),
    ],
    ids=["student R-CNN", "teacher R-CNN", "one class", "anchors", "classes"],
)
def test_detectors_that_do_not_fit_are_refused(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        RankMimic().setup(get_reader(student()), get_reader(teacher()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tau": 0}, r"RankMimic.tau: expected a number > 0, found 0"),
        ({"scores": "softmax"}, r"RankMimic.scores: expected sigmoid or logit, found 'softmax'"),
        ({"assigner": "both"}, r"RankMimic.assigner: expected student or teacher, found 'both'"),
        ({"classification": -1}, r"RankMimic.classification: expected a number >= 0, found -1"),
        ({"classification": 0, "localization": 0}, r"one number > 0, found 0 for each"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RankMimic(**options)


def test_an_assigner_cannot_read_predictions_of_another_kind_of_teacher():
    teacher = toys.fcos()
    method = RankMimic(assigner="teacher")
    with pytest.raises(ValueError, match=r"RankMimic.assigner: expected 'student'.*RetinaNet"):
        method.setup(get_reader(toys.retinanet()), get_reader(teacher))
    RankMimic().setup(get_reader(toys.retinanet()), get_reader(teacher))


def test_no_term_is_negative_after_rounding():
    log_p = torch.randn(4, 1000, dtype=torch.float64).log_softmax(1)
    log_q = (log_p + 1e-4 * torch.randn(4, 1000, dtype=torch.float64)).log_softmax(1)
    terms = _kl(log_p.float(), log_q.float())
    assert (terms >= 0).all()
    exact = (log_p.exp() * (log_p - log_q)).sum(1)
    torch.testing.assert_close(terms.sum(1).double(), exact, rtol=0.01, atol=0)
    far = _kl(torch.tensor([-900.0, 0.0]), torch.tensor([0.0, -900.0]).requires_grad_())
    assert far.tolist() == [1.0, 899.0]
