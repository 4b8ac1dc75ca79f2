"""LD against loops over locations and boxes in float64, and inside a distiller."""

import copy
import dataclasses
import inspect
import math

import pytest
import torch
from torch import nn

from d2kd import Distiller, Teacher
from d2kd.detectors import PointHead
from d2kd.knowledge import Knowledge
from d2kd.methods import MCDropout, Methods
from d2kd.methods.ld import LD, divergence, valuable_region
from d2kd.readers import get_reader
from d2kd.targets import Targets
from tests import toys
from tests.waits import Waits

K = 3
SIZE = (96, 96)  # height and width of the padded batch
IMAGE = (60, 50)  # locations within 64 x 64 px, the next multiple of 32, belong to the image


def gfl(num_classes: int = K, **fields):
    return toys.point("GFL", num_classes=num_classes, **fields)


def truth(counts, seed: int = 0, size=IMAGE) -> Targets:
    """Random boxes, some small, some beyond the image, in float64."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 60 - 10
        side = torch.rand(count, 2, generator=generator).square() * 90 + 1
        images.append(torch.cat([corner, corner + side], 1).tolist())
    classes = [torch.randint(0, K, (count,), generator=generator).tolist() for count in counts]
    found = toys.targets(*images, classes=classes, size=size)
    return dataclasses.replace(found, boxes=found.boxes.double())


def knowledge(n: int, seed: int, spread: float = 5.0, channels: int = 68) -> Knowledge:
    generator = torch.Generator().manual_seed(seed)
    grids = {f"p{level}": -(-SIZE[0] // 2**level) for level in range(3, 8)}

    def maps(width):
        return {
            level: spread * torch.randn(n, width, s, s, generator=generator, dtype=torch.float64)
            for level, s in grids.items()
        }

    return Knowledge(SIZE, logits=maps(K), deltas=maps(channels))


def three_bins():
    head = PointHead(
        input_shape=[toys.ShapeSpec(channels=8)] * 5,
        num_classes=K,
        conv_dims=[8],
        norm="LN",
        box_channels=12,
        quality=False,
    )
    return gfl(reg_max=2, head=head)


def method_on(build=gfl, **options) -> LD:
    method = LD(**options)
    method.setup(get_reader(build().double()), get_reader(build()))
    return method


# ---- the same terms by loops


def cells() -> list[tuple[str, int, int, int]]:
    """Level, stride, row and column of each location."""
    found = []
    for level in range(3, 8):
        side = -(-SIZE[0] // 2**level)
        found += [(f"p{level}", 2**level, y, x) for y in range(side) for x in range(side)]
    return found


CELLS = cells()


def center(r: int) -> tuple[int, int]:
    _, stride, y, x = CELLS[r]
    return x * stride, y * stride


def overlap(a, b) -> float:
    width, height = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0.0) for i in (0, 1))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


def diou(a, b) -> float:
    """Zheng et al., arXiv 1911.08287, equation 7."""
    between = sum(((a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2) ** 2 for i in (0, 1))
    diagonal = sum((max(a[i + 2], b[i + 2]) - min(a[i], b[i])) ** 2 for i in (0, 1))
    return overlap(a, b) - between / diagonal


def regions_by_loop(targets: Targets, i: int, frame: int = 64):
    """The positive locations of image i, and location -> IoU of its valuable locations."""
    anchors = [(x * s - 4 * s, y * s - 4 * s, x * s + 4 * s, y * s + 4 * s) for _, s, y, x in CELLS]
    inside = [r for r, (_, s, y, x) in enumerate(CELLS) if max(x, y) * s < frame]
    positive, valuable = set(), {}
    for box in targets.boxes[i, : targets.counts[i]].tolist():
        middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        candidates = []
        for level in range(3, 8):
            here = [r for r in inside if CELLS[r][0] == f"p{level}"]
            distance = {r: math.dist(center(r), middle) for r in here}
            candidates += sorted(here, key=distance.get)[:9]
        values = [overlap(anchors[r], box) for r in candidates]
        mean = sum(values) / len(values)
        t = mean + math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        for r, value in zip(candidates, values, strict=True):
            x, y = center(r)
            if value >= t and min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01:
                positive.add(r)
        for r in inside:
            if 0.25 * t <= diou(anchors[r], box) < t:
                valuable[r] = max(valuable.get(r, 0.0), overlap(anchors[r], box))
    return positive, valuable


def kl_by_loop(student, teacher, tau: float) -> float:
    """tau^2 sum_k p_k log(p_k / q_k) / B of two lists of B logits."""
    p, q = ([math.exp(v / tau) for v in values] for values in (teacher, student))
    p, q = ([v / sum(values) for v in values] for values in (p, q))
    return tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(p)


def terms_by_loop(student: Knowledge, teacher: Knowledge, targets: Targets) -> dict[str, float]:
    """The terms with the published coefficients and temperatures."""
    main = valuable = classes = count = 0.0
    for i in range(len(targets.counts)):
        positive, region = regions_by_loop(targets, i)
        count += max(len(positive), 1)
        for r, (level, _, y, x) in enumerate(CELLS):
            if r not in positive and r not in region:
                continue
            s, t = (outputs.deltas[level][i, :, y, x].tolist() for outputs in (student, teacher))
            sides = sum(
                kl_by_loop(s[17 * k : 17 * k + 17], t[17 * k : 17 * k + 17], 10) for k in range(4)
            )
            valuable += region.get(r, 0.0) * sides
            if r in positive:
                s, t = (
                    outputs.logits[level][i, :, y, x].tolist() for outputs in (student, teacher)
                )
                main += sides / (1 + math.exp(-max(s)))
                classes += kl_by_loop(s, t, 2)
    return {
        "main": 0.25 * main / 4,
        "valuable": 0.25 * valuable / 16,
        "classification": 10 * classes / count,
    }


@pytest.mark.parametrize("counts", [(5,), (4, 0, 7), (12, 1)])
@pytest.mark.parametrize("seed", range(2))
def test_terms_equal_loops_over_locations_and_boxes(counts, seed):
    outputs = knowledge(len(counts), 2 * seed), knowledge(len(counts), 2 * seed + 1)
    targets = truth(counts, seed)
    terms = method_on()(*outputs, targets)
    expected = terms_by_loop(*outputs, targets)
    assert min(expected.values()) > 0.01
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, rel=1e-9)


def region(detector, outputs, targets, **options):
    maps = list(outputs.logits.values())
    locations = detector.locations(maps)
    inside = detector.in_image_mask(locations, targets.sizes, maps)
    return valuable_region(locations, targets, inside, **options)


@pytest.mark.parametrize("pairs", [1, 1000, 2**22])
def test_region_equals_a_loop_over_boxes_whatever_the_memory(pairs):
    targets = truth((40, 0, 9), seed=3)
    found = region(gfl().double(), knowledge(3, 0), targets, pairs=pairs)
    for i in range(3):
        expected = torch.zeros(len(CELLS), dtype=torch.float64)
        for r, value in regions_by_loop(targets, i)[1].items():
            expected[r] = value
        torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=0)
    assert ((found > 0).sum(1) > torch.tensor([20, -1, 20])).all()


def test_half_the_share_is_a_larger_region():
    detector, outputs, targets = gfl().double(), knowledge(1, 0), truth((3,))
    small, large = ((region(detector, outputs, targets, share=x) > 0).sum() for x in (0.25, 0.125))
    assert large > small > 0


# ---- coefficients and temperatures


def test_defaults_are_the_published_ones():
    found = {
        name: p.default
        for name, p in inspect.signature(LD).parameters.items()
        if p.default is not p.empty
    }
    assert found == found | dict(main=0.25, valuable=0.25, classification=10, tau=10, class_tau=2)
    assert LD().weight == 1


def test_coefficients_multiply_and_zero_leaves_out():
    outputs = knowledge(2, 0), knowledge(2, 1), truth((4, 2))
    whole = method_on()(*outputs)
    assert list(whole) == ["main", "valuable", "classification"]
    for term, options in (
        ("main", dict(main=0.5, valuable=0, classification=0)),
        ("valuable", dict(main=0, valuable=0.5, classification=0)),
        ("classification", dict(main=0, valuable=0, classification=20, weight=7)),
    ):
        alone = method_on(**options)(*outputs)
        assert list(alone) == [term]
        torch.testing.assert_close(alone[term], 2 * whole[term])


def test_main_and_valuable_grow_with_the_images_and_classification_does_not():
    # As released, see the docstring of LD.
    one = truth((4,)), knowledge(1, 0), knowledge(1, 1)
    twice = (x.map_levels(lambda _, m: torch.cat([m, m])) for x in one[1:])
    targets = one[0]
    both = Targets(
        *(torch.cat([x, x]) for x in (targets.boxes, targets.classes, targets.valid)),
        *(torch.cat([targets.sizes] * 2), targets.counts * 2),
    )
    single, double = method_on()(*one[1:], one[0]), method_on()(*twice, both)
    for term, factor in (("main", 2), ("valuable", 2), ("classification", 1)):
        torch.testing.assert_close(double[term], factor * single[term])


def test_divergence_is_from_the_teacher_to_the_student_at_a_temperature():
    # Teacher (3/4, 1/4), student (1/2, 1/2); times tau^2 = 4, mean over 2 bins.
    student, teacher = torch.zeros(2), torch.tensor([2 * math.log(3), 0.0])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert divergence(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)


# ---- gradients


@pytest.mark.parametrize("maps", ["deltas", "logits"])
def test_gradients_equal_finite_differences(maps):
    student, teacher, targets = knowledge(1, 0, 1.0, 12), knowledge(1, 1, 1.0, 12), truth((5,))
    # The weight of "main", the best class probability, has no gradient.
    method = method_on(three_bins, main=0.25 * (maps == "deltas"))
    levels = getattr(student, maps)

    def loss(*inputs):
        outputs = dataclasses.replace(student, **{maps: dict(zip(levels, inputs, strict=True))})
        return sum(method(outputs, teacher, targets).values())

    inputs = tuple(x.requires_grad_() for x in levels.values())
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_class_logits_learn_from_classification_only():
    student, teacher, targets = knowledge(2, 0), knowledge(2, 1), truth((4, 2))
    logits = [x.requires_grad_() for x in student.logits.values()]
    deltas = [x.requires_grad_() for x in student.deltas.values()]
    terms = method_on()(student, teacher, targets)
    for term, learns, fixed in (
        ("main", deltas, logits),
        ("valuable", deltas, logits),
        ("classification", logits, deltas),
    ):
        options = dict(retain_graph=True, allow_unused=True)
        assert any(g.abs().sum() > 0 for g in torch.autograd.grad(terms[term], learns, **options))
        assert all(g is None for g in torch.autograd.grad(terms[term], fixed, **options))


def test_the_teacher_itself_has_no_loss_and_no_gradient():
    student, targets = knowledge(2, 0), truth((4, 2))
    teacher = copy.deepcopy(student)
    inputs = [x.requires_grad_() for x in (*student.logits.values(), *student.deltas.values())]
    terms = method_on()(student, teacher, targets)
    assert [v.item() for v in terms.values()] == [0, 0, 0]
    for gradient in torch.autograd.grad(sum(terms.values()), inputs):
        assert gradient.abs().max() < 1e-12


# ---- edges


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[30.0, 20.0, 31.0, 21.0]],  # one pixel
        [[5.0, 5.0, 5.0, 5.0]],  # no area
        [[-900.0, -900.0, -850.0, -840.0]],  # far outside the image
        [[-90.0, -90.0, 300.0, 300.0]],  # larger than the image
    ],
    ids=["none", "one pixel", "empty", "off the image", "all of it"],
)
def test_edge_boxes_give_finite_losses_with_gradient(boxes):
    student, teacher = knowledge(1, 0), knowledge(1, 1)
    inputs = [x.requires_grad_() for x in (*student.logits.values(), *student.deltas.values())]
    terms = method_on()(student, teacher, toys.targets(boxes, size=IMAGE))
    gradients = torch.autograd.grad(sum(terms.values()), inputs)
    assert all(torch.isfinite(v) and v.requires_grad for v in terms.values())
    assert all(torch.isfinite(g).all() for g in gradients)
    if not boxes or boxes[0][0] in (5, -900):
        assert [v.item() for v in terms.values()] == [0, 0, 0]


def test_locations_beyond_the_image_count_for_nothing():
    student, teacher, targets = knowledge(1, 0), knowledge(1, 1), truth((6,))
    expected = method_on()(student, teacher, targets)
    for level in ("p3", "p4", "p5"):  # locations within 64 pixels count
        stride = 2 ** int(level[1])
        teacher.deltas[level][..., 64 // stride :, :] += 50
        teacher.logits[level][..., 64 // stride :] -= 50
    for term, value in method_on()(student, teacher, targets).items():
        assert torch.equal(value, expected[term])


def test_no_operation_makes_a_gpus_host_wait():
    method, outputs = method_on(), (knowledge(2, 0), knowledge(2, 1), truth((4, 0)))
    with Waits() as waits:
        method(*outputs)
    assert not waits.found


# ---- uncertainty


def test_uncertainty_without_rates_changes_nothing():
    outputs = knowledge(2, 0), knowledge(2, 1), truth((4, 2))
    plain = method_on()(*outputs)
    with_it = method_on(uncertainty=MCDropout(rates=(0.0, 0.0), combine="mean"))(*outputs)
    for term, value in plain.items():
        torch.testing.assert_close(with_it[term], value, rtol=1e-12, atol=0)


def test_uncertainty_sees_the_distributions_of_the_teacher_only():
    class Double(nn.Module):
        def forward(self, x):
            assert x.shape[1] == 68
            return 2 * x

    student, teacher, targets = knowledge(2, 0), knowledge(2, 1), truth((4, 2))
    found = method_on(uncertainty=Double())(student, teacher, targets)
    doubled = dataclasses.replace(teacher, deltas={k: 2 * x for k, x in teacher.deltas.items()})
    expected = method_on()(student, doubled, targets)
    for term, value in expected.items():
        assert torch.equal(found[term], value)


# ---- with detectors


BOXES = [(4, 6, 40, 45), (20, 10, 60, 50), (1, 1, 63, 63)]


def distiller(**options) -> Distiller:
    torch.manual_seed(0)
    student, teacher = gfl(), Teacher(gfl(), None)
    # As after some training: predictions that differ between locations.
    for model in (student, teacher.model):
        nn.init.normal_(model.head.cls_score.weight, std=0.3)
        nn.init.normal_(model.head.bbox_pred.weight, std=0.3)
    return Distiller(student=student, teacher=teacher, methods=Methods(ld=LD(**options))).train()


@pytest.mark.parametrize("options", [{}, {"uncertainty": MCDropout()}], ids=["plain", "dropout"])
def test_trains_the_student_only(options):
    model = distiller(**options)
    loss = model([toys.image(BOXES), toys.image([], seed=1)])["loss_distill_ld"]
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    for layer in (model.student.head.cls_score, model.student.head.bbox_pred):
        gradient = layer.weight.grad
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    assert all(p.grad is None for p in model.teacher.model.parameters())
    assert not model.distillation.state_dict()


def test_batch_without_boxes_keeps_its_graph():
    loss = distiller()([toys.image([]), toys.image([], seed=1)])["loss_distill_ld"]
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()


def test_a_copied_distiller_assigns_by_its_own_student():
    copied = copy.deepcopy(distiller())
    assert copied.distillation["ld"].reader.detector is copied.student


@pytest.mark.parametrize(
    "student, teacher, message",
    [
        (toys.retinanet, gfl, r"LD: expected a student that regresses a dist.* found RetinaNet. U"),
        (gfl, lambda: toys.point("ATSS"), r"LD: expected a teacher that regresses.* found ATSS"),
        (toys.rcnn, gfl, r"expected a student that regresses.* GeneralizedRCNN"),
        (gfl, three_bins, r"same number of bins per side, found 17 and 3"),
        (gfl, lambda: gfl(num_classes=5), r"same number of classes, found 3 and 5.*tion=0"),
        (gfl, lambda: gfl(anchor_generator=shifted()), r"LD: .*same offset of the anchors"),
    ],
    ids=["student", "teacher", "R-CNN", "bins", "classes", "anchors"],
)
def test_detectors_that_do_not_fit_are_refused(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        LD().setup(get_reader(student()), get_reader(teacher()))


def shifted():
    return toys.DefaultAnchorGenerator(
        sizes=[[8 * s] for s in toys.STRIDES], aspect_ratios=[1.0], strides=toys.STRIDES, offset=0.5
    )


def test_without_classification_the_classes_may_differ():
    teacher = knowledge(1, 1)
    teacher.logits = {level: x[:, :1] for level, x in teacher.logits.items()}
    method = LD(classification=0)
    method.setup(get_reader(gfl().double()), get_reader(gfl(num_classes=1)))
    assert method(knowledge(1, 0), teacher, truth((4,)))["main"] > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tau": 0}, r"LD.tau: expected a number > 0, found 0"),
        ({"class_tau": -1}, r"LD.class_tau: expected a number > 0, found -1"),
        ({"main": -1}, r"LD.main: expected a number >= 0, found -1"),
        ({"main": 0, "valuable": 0, "classification": 0}, r"one number > 0, found 0 for each"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LD(**options)
