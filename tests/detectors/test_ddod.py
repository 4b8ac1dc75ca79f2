"""Compare DDOD with numbers of the released code, and its assignments with loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import nn
from torchvision.ops import box_iou, generalized_box_iou

from d2kd.detectors import PointHead
from d2kd.detectors.base import Locations, Predictions
from d2kd.detectors.ddod import DDOD, DDODHead, DeformConv2dPack, LevelBalance, topk_candidates
from d2kd.targets import Targets
from tests import toys
from tests.waits import Waits

from .scene import detector, instances, located, reference, targets, truth

GRIDS = ((6, 8), (3, 4), (2, 2), (1, 1), (1, 1))
SIZE = (48, 64)


def head(cls: type = DDODHead, channels: int = 8, classes: int = 5, **fields) -> DDODHead:
    return cls(
        input_shape=[ShapeSpec(channels=channels)] * 5,
        num_classes=classes,
        conv_dims=[8, 8],
        norm=lambda channels: nn.GroupNorm(2, channels),
        **fields,
    )


def ddod(**fields) -> DDOD:
    model = detector(DDOD, **fields)
    model.head = head(classes=model.num_classes)
    return model


def grid() -> Locations:
    """66 locations on five levels, in float64."""
    anchors, strides = [], []
    for (h, w), stride in zip(GRIDS, toys.STRIDES, strict=True):
        y, x = (stride * torch.cartesian_prod(torch.arange(h), torch.arange(w))).double().unbind(1)
        half = 4 * stride
        anchors.append(torch.stack([x - half, y - half, x + half, y + half], 1))
        strides.append(torch.full((h * w,), float(stride)))
    return Locations(torch.cat(anchors), torch.cat(strides), tuple(h * w for h, w in GRIDS))


def random_truth() -> Targets:
    """Random boxes of two images; an image may have none.

    Boxes overlap, and some occur twice, are tiny, have no size or lie outside the image.
    """
    images = []
    for count in torch.randint(0, 6, (2,)).tolist():
        corner = torch.rand(count, 2) * 50 - 5
        boxes = torch.cat([corner, corner + torch.rand(count, 2) * 50], 1)
        if count > 1:
            extra = torch.tensor([[0.0, 0, 0, 0], [-90, -80, -40, -30], [13.3, 7.4, 14.1, 8.6]])
            boxes = torch.cat([boxes, extra[torch.randperm(3)[:2]], boxes[:1] + 0.5, boxes[:1]])
        classes = torch.randint(0, 2, (len(boxes),))
        classes[-1:] = classes[:1]
        images.append(instances(boxes, classes, SIZE))
    found = Targets.from_instances(images, "cpu")
    return Targets(
        found.boxes.double(), *(getattr(found, x) for x in ("classes", "valid", "sizes", "counts"))
    )


def random_predictions(locations: Locations, targets: Targets):
    """Logits of three classes, and boxes. Some boxes are near the true ones."""
    n, g = targets.valid.shape
    r = len(locations.anchors)
    boxes = locations.anchors + 20 * torch.randn(n, r, 4, dtype=torch.float64)
    boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2])
    if g:
        near = targets.boxes[torch.arange(n)[:, None], torch.randint(0, g, (n, r))]
        boxes = torch.where(torch.rand(n, r, 1) < 0.5, near + torch.rand(n, r, 4), boxes)
    return torch.randn(n, r, 3, dtype=torch.float64), boxes


def match_by_loop(form, locations, logits, boxes, truth, classes, in_image, alpha, topk=9):
    """The assignment of one image, computed box by box, as the papers describe it."""
    centers = locations.centers.tolist()
    everywhere = [i for i in range(len(centers)) if in_image[i]]
    matched, best = [-1] * len(centers), [-1.0] * len(centers)
    for k, (x0, y0, x1, y1) in enumerate(truth.tolist()):
        q = {}
        for i in everywhere:
            a0, b0, a1, b1 = boxes[i].tolist()
            wide, high = min(a1, x1) - max(a0, x0), min(b1, y1) - max(b0, y0)
            both = max(wide, 0) * max(high, 0)
            union = (a1 - a0) * (b1 - b0) + (x1 - x0) * (y1 - y0) - both
            p = logits[i, classes[k]].sigmoid().item()
            q[i] = p ** (1 - alpha) * (both / max(union, 1e-6)) ** alpha
        if form == "topk":
            chosen = sorted(everywhere, key=lambda i: -q[i])[:topk]
            chosen = [i for i in chosen if q[i] > 0]
        else:
            middle = (x0 + x1) / 2, (y0 + y1) / 2
            distance = {
                i: sum((a - b) ** 2 for a, b in zip(centers[i], middle, strict=True))
                for i in everywhere
            }
            candidates, start = [], 0
            for count in locations.counts:
                level = [i for i in everywhere if start <= i < start + count]
                candidates += sorted(level, key=distance.get)[:topk]
                start += count
            values = torch.tensor([q[i] for i in candidates], dtype=torch.float64)
            limit = values.mean() + (values.std() if len(values) > 1 else 0)
            chosen = [i for i in candidates if q[i] >= limit]
        for i in chosen:
            x, y = centers[i]
            if min(x - x0, y - y0, x1 - x, y1 - y) > 0.01 and q[i] > best[i]:
                matched[i], best[i] = k, q[i]
    return matched


@pytest.mark.parametrize("alpha", [0.8, 0.5])
@pytest.mark.parametrize("form", ["topk", "atss"])
def test_assignment_equals_a_loop_over_boxes(form, alpha):
    model, locations = ddod(assigner=form, num_classes=3), grid()
    positives = 0
    for scene in range(30):
        truth = random_truth()
        logits, boxes = random_predictions(locations, truth)
        in_image = torch.rand(2, 66) < (0.8 if scene % 2 else 1.1)
        found = model.match(locations, logits, boxes, truth, in_image, alpha)
        for i, count in enumerate(truth.counts):
            image = truth.boxes[i, :count], truth.classes[i, :count], in_image[i], alpha
            assert found[i].tolist() == match_by_loop(form, locations, logits[i], boxes[i], *image)
        positives += (found >= 0).sum()
    assert positives > 100


@pytest.mark.parametrize("form", ["topk", "atss"])
def test_few_locations_are_all_candidates(form):
    # The released code stops with an error if an image has fewer than 9 locations.
    model, locations = ddod(assigner=form, num_classes=3), grid()
    truth = random_truth()
    logits, boxes = random_predictions(locations, truth)
    in_image = torch.arange(66).expand(2, -1) % 16 == 0
    found = model.match(locations, logits, boxes, truth, in_image, 0.8)
    assert not (found[~in_image] >= 0).any()
    for i, count in enumerate(truth.counts):
        image = truth.boxes[i, :count], truth.classes[i, :count], in_image[i], 0.8
        assert found[i].tolist() == match_by_loop(form, locations, logits[i], boxes[i], *image)


def test_candidates_do_not_depend_on_the_chunk():
    locations, truth = grid(), random_truth()
    while truth.valid.shape[1] < 6:
        truth = random_truth()
    logits, boxes = random_predictions(locations, truth)
    in_image = torch.ones(2, 66, dtype=torch.bool)
    probability = logits.sigmoid().mT
    whole = topk_candidates(probability, boxes, truth, in_image, 0.8)
    parts = topk_candidates(probability, boxes, truth, in_image, 0.8, chunk_size=2)
    torch.testing.assert_close(whole[1], parts[1])
    assert (whole[0] == parts[0])[whole[1] > 0].all()


def released() -> Predictions:
    """The released DDOD was run on the same predictions as ATSS with an IoU branch."""
    return Predictions(*(reference(f"atss_iou.{x}") for x in ("logits", "deltas", "quality")))


def test_losses_equal_released_code_over_two_steps():
    # In the second step, the counters go on from the first, and the second image has no boxes.
    model = ddod()
    locations, in_image = located(model)
    first = model.losses(locations, released(), targets(), in_image)
    empty = Targets.from_instances([truth()[0], truth()[1][[]]], "cpu")
    second = model.losses(locations, released(), empty, in_image)
    names = ["loss_cls", "loss_box_reg", "loss_iou"]
    assert list(first) == names
    assert [first[x].item() for x in names] == pytest.approx(
        [7.01193, 0.8442104, 0.7086951], rel=2e-5
    )
    assert [second[x].item() for x in names] == pytest.approx(
        [11.337787, 1.0235536, 0.7384639], rel=2e-5
    )


def focal(logits, k, classes) -> float:
    """Focal loss of one location, with alpha 0.25 and gamma 2."""
    total = 0.0
    for c, x in enumerate(logits.tolist()):
        p = 1 / (1 + math.exp(-x))
        if k >= 0 and classes[k] == c:
            total -= 0.25 * (1 - p) ** 2 * math.log(p)
        else:
            total -= 0.75 * p**2 * math.log(1 - p)
    return total


def test_losses_equal_sums_over_locations():
    model = ddod(cls_alpha=0.7, box_alpha=0.4)
    locations, in_image = located(model)
    predictions, truths = released(), targets()
    found = model.losses(locations, predictions, truths, in_image)
    boxes = model.decode(locations, predictions.regression).double()
    expected = {}
    for name, alpha in (("loss_cls", 0.7), ("loss_box_reg", 0.4)):
        matched = model.assign(locations, predictions, truths, in_image, alpha)
        levels = (matched >= 0).split(locations.counts, 1)
        n = [int(x.sum()) for x in levels]
        f = [2 - (k - min(n)) / (max(n) - min(n)) for k in n]
        factor = [a for a, b in zip(f, locations.counts, strict=True) for _ in range(b)]
        total = iou_total = 0.0
        for i, r in in_image.nonzero().tolist() if name == "loss_cls" else ():
            total += factor[r] * focal(predictions.logits[i, r], matched[i, r], truths.classes[i])
        for i, r in (matched >= 0).nonzero().tolist() if name == "loss_box_reg" else ():
            a, b = boxes[i, r], truths.boxes[i, matched[i, r]].double()
            both = box_iou(a[None], b[None])
            total += 2 * factor[r] * (1 - generalized_box_iou(a[None], b[None])).item()
            logit = predictions.quality[i, r].double().view(1, 1)
            iou_total += factor[r] * F.binary_cross_entropy_with_logits(logit, both).item()
        count = sum(max(int((x >= 0).sum()), 1) for x in matched)
        expected[name] = total / count
        if name == "loss_box_reg":
            expected["loss_iou"] = iou_total / count
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5)


def test_assignments_and_targets_have_no_gradient():
    # The gradient of the boxes comes from the box loss only, not from the target of the IoU branch.
    model = ddod()
    locations, in_image = located(model)
    predictions = Predictions(*(x.clone().requires_grad_() for x in released()))
    losses = model.losses(locations, predictions, targets(), in_image)
    gradient = torch.autograd.grad(losses["loss_iou"], predictions.regression, allow_unused=True)
    assert gradient == (None,)
    gradients = torch.autograd.grad(sum(losses.values()), predictions)
    assert all(x.isfinite().all() and x.abs().sum() > 0 for x in gradients)


def test_each_assignment_has_its_alpha():
    model = ddod()
    locations, in_image = located(model)
    scene = locations, released(), targets(), in_image
    default, other = model.assign(*scene), model.assign(*scene, alpha=model.box_alpha)
    assert (default == model.assign(*scene, alpha=0.8)).all() and (default != other).any()


def test_example_of_level_factors():
    balance, counts = LevelBalance(5), (60, 20, 10, 5, 5)
    numbers = zip((55, 15, 5, 0, 0), counts, strict=True)
    positive = torch.cat([torch.arange(count) < n for n, count in numbers])
    factors = balance(positive[None], counts)
    expected = [1.0, 1.72727, 1.90909, 2.0, 2.0]
    assert [x[0].item() for x in factors.split(counts)] == pytest.approx(expected, abs=1e-5)
    assert (factors[:60] == factors[0]).all() and len(factors) == sum(counts)


def test_counters_sum_over_steps_and_equal_levels_weigh_two():
    balance = LevelBalance(2)
    assert balance(torch.tensor([[True, True]]), (1, 1)).tolist() == [2, 2]
    balance(torch.tensor([[True, False], [True, False]]), (1, 1))
    assert balance.positives.tolist() == [3, 1]


def test_a_resumed_run_goes_on_with_the_counters():
    model, resumed = ddod(), ddod()
    locations, in_image = located(model)
    model.losses(locations, released(), targets(), in_image)
    resumed.load_state_dict(model.state_dict())
    assert resumed.cls_balance.positives.sum() > 0
    again = [x.losses(locations, released(), targets(), in_image) for x in (model, resumed)]
    assert again[0] == again[1]


def test_the_guide_assigns_once():
    model = ddod()
    locations, in_image = located(model)
    own, truths = released(), targets()
    # The guide's predictions for an image are the detector's own for the other image.
    logits, deltas = own.logits.flip(0), own.regression.flip(0)
    other = Predictions(logits, deltas, own.quality)
    assert (
        model.assign(locations, own, truths, in_image)
        != model.assign(locations, other, truths, in_image)
    ).any()
    model.guide = logits, model.decode(locations, deltas)
    guided = model.losses(locations, own, truths, in_image)
    assert model.guide is None

    expected = model.assign(locations, other, truths, in_image)
    counted = [int((x >= 0).sum()) for x in expected.split(locations.counts, 1)]
    assert model.cls_balance.positives.tolist() == counted
    for i, count in enumerate(truths.counts):
        boxes = model.decode(locations, deltas)[i]
        image = truths.boxes[i, :count], truths.classes[i, :count], in_image[i], 0.8
        assert expected[i].tolist() == match_by_loop("topk", locations, logits[i], boxes, *image)

    unguided = ddod().losses(locations, own, truths, in_image)
    assert all(abs(guided[x] - unguided[x]) > 1e-3 for x in ("loss_cls", "loss_box_reg"))


def test_a_guide_of_other_shape_is_refused():
    model = ddod()
    locations, in_image = located(model)
    model.guide = released().logits[:, 1:], released().regression
    with pytest.raises(
        ValueError, match=r"DDOD.guide: expected class logits and boxes of the shapes"
    ):
        model.losses(locations, released(), targets(), in_image)


def test_zero_offsets_are_a_plain_convolution():
    conv = DeformConv2dPack(8, 6, bias=True)
    nn.init.normal_(conv.bias)
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))


def test_head_starts_as_the_plain_head():
    model, plain = head(), head(PointHead)
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    towers = ("cls_subnet", "bbox_subnet")
    offsets = [f"{tower}.0.offset.{name}" for tower in towers for name in ("weight", "bias")]
    assert not missing and unexpected == offsets
    maps = [torch.randn(2, 8, s, s + 1) for s in (9, 5, 3, 2, 1)]
    for ours, theirs in zip(model(maps), plain(maps), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_offsets_shift_the_sampled_place_by_dy_dx():
    conv = DeformConv2dPack(1, 1)
    with torch.no_grad():
        conv.weight.zero_()[0, 0, 1, 1] = 1
        conv.offset.bias[8:10] = torch.tensor([1.0, 2.0])  # the middle tap
    x = torch.arange(30.0).view(1, 1, 5, 6)
    torch.testing.assert_close(conv(x)[0, 0, :4, :4], x[0, 0, 1:, 2:])


def test_a_step_under_autocast():
    model = ddod(num_classes=3).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([toys.image()])
    sum(losses.values()).backward()
    assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())
    assert model.head.cls_subnet[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("form", ["topk", "atss"])
def test_losses_do_not_wait_for_the_device(form):
    model = ddod(assigner=form)
    locations, in_image = located(model)
    predictions = Predictions(*(x.clone().requires_grad_() for x in released()))
    truths = targets()
    with Waits() as waits:
        sum(model.losses(locations, predictions, truths, in_image).values()).backward()
    assert waits.found == []


# Boxes of one pixel, of no size, outside the image, and as large as the image.
ODD = [(3, 3, 4, 4), (5, 5, 5, 5), (-90, -90, -50, -40), (0, 0, 64, 64)]


@pytest.mark.parametrize("boxes", [[], ODD], ids=["none", "odd"])
@pytest.mark.parametrize("form", ["topk", "atss"])
def test_a_step_trains_every_parameter(form, boxes):
    model = ddod(assigner=form, num_classes=3).train()
    losses = model([toys.image(boxes), toys.image([], size=(96, 70), seed=1)])
    assert list(losses) == ["loss_cls", "loss_box_reg", "loss_iou"]
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.head.cls_score.weight.grad.abs().sum() > 0


def test_the_offsets_learn():
    model = ddod(num_classes=3).train()
    sum(model(toys.batch()).values()).backward()
    for tower in (model.head.cls_subnet, model.head.bbox_subnet):
        assert tower[0].offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"assigner": "best"}, r"DDOD.assigner: expected 'topk' or 'atss', found 'best'"),
        ({"box_alpha": 1.5}, r"DDOD: expected alphas in \[0, 1\], found 0.8, 1.5"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ddod(**fields)


def test_a_box_that_no_prediction_overlaps_has_no_positives():
    model = ddod()
    locations, in_image = located(model)
    away = torch.tensor([900.0, 900.0, 950.0, 950.0]).expand(1, len(locations.anchors), 4)
    truth = toys.targets([(8.0, 8.0, 100.0, 100.0)], size=(256, 320))
    logits = torch.ones(1, len(locations.anchors), 5)
    matched = model.match(locations, logits, away, truth, in_image[:1], 0.8)
    assert (matched == -1).all()
