"""Compare AutoAssign with numbers of the released code and with loops in float64."""

import math

import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from d2kd.detectors.autoassign import AutoAssign, CenterPrior
from d2kd.detectors.base import Locations, Predictions
from d2kd.targets import Targets
from tests import toys
from tests.waits import Waits

from .scene import (
    close,
    close_gradient,
    detector,
    images,
    instances,
    located,
    maps,
    reference,
    targets,
    unflatten,
)

HEAD = dict(conv_bias=True, prior_prob=0.02, box_bias=4.0)
LOSSES = ["loss_pos", "loss_neg", "loss_center"]


def autoassign(**fields) -> AutoAssign:
    return detector(AutoAssign, head=HEAD, **fields)


def released() -> AutoAssign:
    """A model with the center prior of the reference."""
    model = autoassign()
    model.center_prior.mu.data = reference("autoassign.prior_mean")
    model.center_prior.sd.data = reference("autoassign.prior_sigma")
    return model


def predictions(locations: Locations) -> Predictions:
    # Strides are powers of two, so that the division is exact.
    found = Predictions(
        reference("autoassign.logits"),
        reference("autoassign.ltrb_pixels") / locations.strides[:, None],
        reference("autoassign.objectness"),
    )
    return Predictions(*(x.requires_grad_() for x in found))


def per_image(name: str):
    """An array of the reference for each image, transposed to (boxes or classes, R)."""
    return [reference(f"autoassign.{name}{i}").mT for i in range(2)]


@pytest.fixture
def scene():
    model = released()
    locations, in_image = located(model)
    return model, locations, predictions(locations), targets(), in_image


def released_negative_weights() -> torch.Tensor:
    return torch.stack(per_image("neg_weight"))


def shared(locations: Locations, truths: Targets, num_classes: int = 5) -> torch.Tensor:
    """(N, K, R) bool, whether several boxes of the class contain the location."""
    x, y = locations.centers.unbind(1)
    count = torch.zeros(len(truths.boxes), num_classes, len(x))
    for i, number in enumerate(truths.counts):
        for (x0, y0, x1, y1), c in zip(
            truths.boxes[i, :number].tolist(), truths.classes[i, :number].tolist(), strict=True
        ):
            count[i, c] += ((x > x0) & (x < x1) & (y > y0) & (y < y1)).float()
    return count > 1


def test_positive_and_center_losses_equal_released_code(scene):
    model, *inputs = scene
    losses = model.losses(*inputs)
    assert list(losses) == LOSSES
    close(losses["loss_pos"], "autoassign.loss_pos")
    close(losses["loss_center"], "autoassign.loss_center")


def test_negative_weights_equal_released_code_where_boxes_of_a_class_do_not_overlap(scene):
    # Where boxes overlap, the release keeps the weight of the last box, and d2kd the smallest.
    model, locations, given, truths, _ = scene
    found = model.negative_weights(locations, model.decode(locations, given.regression), truths)
    expected, several = released_negative_weights(), shared(locations, truths)
    torch.testing.assert_close(found[~several], expected[~several], rtol=0, atol=1e-5)
    assert several.sum() > 50
    assert (found <= expected + 1e-5).all() and (found < expected - 1e-3)[several].any()


def test_losses_and_gradients_equal_released_code_given_its_negative_weights(scene):
    model, *inputs = scene
    model.negative_weights = lambda *_: released_negative_weights()
    losses = model.losses(*inputs)
    for name in LOSSES:
        close(losses[name], f"autoassign.{name}")
    locations, given = inputs[:2]
    prior = model.center_prior
    logits, sides, objectness, mu, sd = torch.autograd.grad(
        sum(losses.values()), [*given, prior.mu, prior.sd]
    )
    close_gradient(logits, "autoassign.grad_cls")
    close_gradient(objectness, "autoassign.grad_objectness")
    close_gradient(mu, "autoassign.grad_prior_mean")
    close_gradient(sd, "autoassign.grad_prior_sigma")
    # The reference takes boxes after the ReLU as inputs. Where the ReLU is 0, our gradient is 0.
    expected = reference("autoassign.grad_box")
    error = sides / locations.strides[:, None] - expected
    passed = given.regression > 0
    assert passed.float().mean() > 0.9
    assert error[passed].abs().max() <= 1e-3 * expected.abs().max()


def test_weights_equal_released_code(scene):
    model, locations, given, truths, _ = scene
    boxes, joint = model.decode(locations, given.regression), model._joint(given)
    likelihood, weight, prior, in_box = model.positive_weights(locations, boxes, joint, truths)
    for i, number in enumerate(truths.counts):
        for value, name in ((prior, "center_prior"), (weight, "pos_weight"), (likelihood, "p_pos")):
            expected = per_image(name)[i]
            at = in_box[i, :number] if name == "p_pos" else torch.ones_like(expected).bool()
            torch.testing.assert_close(value[i, :number][at], expected[at], rtol=1e-4, atol=1e-7)
        surprise = model._positive_parts(locations, boxes, joint, truths)[0][i, :number]
        close(surprise, f"autoassign.pos_loss_per_gt{i}")


def test_forced_locations_equal_released_code():
    truth = instances(reference("autoassign.force_topk_boxes"), torch.tensor([0, 1]), (250, 318))
    truths = Targets.from_instances([truth], "cpu")
    locations, _ = located(autoassign())
    prior, in_box = CenterPrior(5, force_topk=True)(locations, truths)
    close(prior[0].mT, "autoassign.force_topk_prior", atol=1e-7)
    assert (in_box[0].mT == reference("autoassign.force_topk_mask").bool()).all()
    unforced, nowhere = CenterPrior(5)(locations, truths)
    assert not nowhere[0, 0].any() and (unforced[0, 1] == prior[0, 1]).all()


@pytest.mark.parametrize("i", [0, 1])
def test_detections_equal_released_code(scene, i):
    model, _, given, *_ = scene
    output = (given.logits, given.regression, given.quality[..., None])
    with torch.no_grad():
        found = model.forward_inference(images(), maps(), tuple(unflatten(x) for x in output))[i]
    boxes, scores = reference(f"autoassign.det{i}").split([4, 1], 1)
    assert found.pred_classes.tolist() == reference(f"autoassign.det_label{i}").tolist()
    torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, scores[:, 0], rtol=1e-5, atol=0)


def random_scene(num_classes: int = 2):
    """Three images in float64, the last one without boxes.

    Some boxes of a class overlap, some are tiny, one has no size, one lies outside the image, and
    one occurs twice.
    """
    locations, _ = located(autoassign())
    locations = Locations(*(x.double() for x in locations[:2]), locations.counts)
    counts = (7, 4, 0)
    corner = torch.rand(3, 7, 2) * 200
    boxes = torch.cat([corner, corner + 2 + torch.rand(3, 7, 2) * 120], 2)
    boxes[0, :4] = torch.tensor(
        [[17, 17, 23, 23], [9, 9, 9, 9], [-90, -80, -40, -30], [30.5, 31, 33, 33]]
    )
    boxes[0, 6] = boxes[0, 5]
    classes = torch.randint(0, num_classes, (3, 7))
    classes[0, 6] = classes[0, 5]
    truth = [instances(boxes[i, :n], classes[i, :n], (250, 318)) for i, n in enumerate(counts)]
    found = Targets.from_instances(truth, "cpu")
    found = Targets(found.boxes.double(), found.classes, found.valid, found.sizes, found.counts)
    r = len(locations.anchors)
    given = Predictions(
        torch.randn(3, r, num_classes, dtype=torch.float64),
        torch.rand(3, r, 4, dtype=torch.float64) * 4,
        torch.randn(3, r, dtype=torch.float64),
    )
    model = autoassign(num_classes=num_classes).double()
    with torch.no_grad():
        model.center_prior.mu.normal_(std=0.5)
        model.center_prior.sd.uniform_(0.7, 1.6)
    return model, locations, given, found, torch.ones(3, r, dtype=torch.bool)


def by_loop(model, locations, given, truths):
    """Losses and assignment, computed box by box in float64.

    Where boxes of a class overlap, a location's negative weight is the smallest.
    """
    points, strides = locations.centers, locations.strides[:, None]
    mu, sd = model.center_prior.mu.detach(), model.center_prior.sd.detach()
    pos = neg = total = center = 0.0
    matched = torch.full(given.quality.shape, -1)
    for i, count in enumerate(truths.counts):
        sides = given.regression[i].relu() * strides
        boxes = torch.cat([points - sides[:, :2], points + sides[:, 2:]], 1)
        joint = given.logits[i].sigmoid() * given.quality[i].sigmoid()[:, None]
        v, mass, best = torch.ones_like(joint), 0.0, torch.zeros(len(points)).double()
        u = box_iou(boxes, truths.boxes[i, :count]).amax(1) if count else None
        some = False
        for k in range(count):
            box, c = truths.boxes[i, k], int(truths.classes[i, k])
            x0, y0, x1, y1 = box.tolist()
            at = [
                r
                for r, (x, y) in enumerate(points.tolist())
                if min(x - x0, y - y0, x1 - x, y1 - y) > 0
            ]
            if not at:
                pos += 100
                continue
            some = True
            away = (points[at] - (box[:2] + box[2:]) / 2) / strides[at]
            prior = (-((away - mu[c]) ** 2 / (2 * sd[c] ** 2)).sum(1)).exp()
            likelihood = (
                joint[at, c] * (-5 * (1 - generalized_box_iou(boxes[at], box[None])[:, 0])).exp()
            )
            weight = prior * (likelihood / (1 / 3)).exp()
            weight = weight / weight.sum()
            pos += -math.log((weight * likelihood).sum())
            mass += prior.sum().item()
            f = 1 / (1 - u[at])
            n = (f - f.min() + 1e-12) / (f.max() - f.min() + 1e-12)
            for r, value in zip(at, (1 - n).tolist(), strict=True):
                v[r, c] = min(v[r, c], value)
            for j in weight.argsort(descending=True)[:9].tolist():
                if weight[j] > best[at[j]]:
                    matched[i, at[j]], best[at[j]] = k, weight[j]
        m = v * joint
        neg += (-(m**2) * (1 - m).log()).sum().item()
        total += mass
        center += count / mass if some else 0
    losses = {
        "loss_pos": 0.25 * pos / max(sum(truths.counts), 1),
        "loss_neg": 0.75 * neg / max(total, 1),
        "loss_center": 0.75 * center / len(truths.counts),
    }
    return losses, matched


@pytest.mark.parametrize("seed", range(2))
def test_losses_and_assignment_equal_a_loop_over_boxes(seed):
    torch.manual_seed(seed)
    model, locations, given, truths, in_image = random_scene()
    losses, matched = by_loop(model, locations, given, truths)
    found = model.losses(locations, given, truths, in_image)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(losses, rel=1e-6)
    assert (model.assign(locations, given, truths, in_image) == matched).all()
    assert shared(locations, truths, 2).any() and (matched >= 0).sum() > 10


def test_losses_do_not_depend_on_the_order_of_boxes():
    model, locations, given, truths, in_image = random_scene()
    order = torch.randperm(truths.valid.shape[1])
    other = Targets(
        *(x[:, order] for x in (truths.boxes, truths.classes, truths.valid)),
        truths.sizes,
        truths.counts,
    )
    losses = [model.losses(locations, given, x, in_image) for x in (truths, other)]
    for name in LOSSES:
        torch.testing.assert_close(losses[0][name], losses[1][name])


def test_chunks_change_neither_losses_nor_gradients_nor_assignment():
    model, locations, given, truths, in_image = random_scene()
    given = Predictions(*(x.requires_grad_() for x in given))
    inputs = [*given, *model.center_prior.parameters()]
    found = []
    for chunk in (32, 3):
        model.chunk_size = chunk
        total = sum(model.losses(locations, given, truths, in_image).values())
        matched = model.assign(locations, given, truths, in_image)
        found.append((total, *torch.autograd.grad(total, inputs), matched))
    torch.testing.assert_close(found[0], found[1])


class Watch(Waits):
    """Record operations that make the host wait for a GPU, and the size of the largest tensor."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_steps_do_not_wait_for_the_device(scene):
    model, *inputs = scene
    with Watch() as watch:
        sum(model.losses(*inputs).values()).backward()
        model.assign(*inputs)
    assert watch.found == []


def test_memory_does_not_grow_with_boxes():
    model = autoassign()
    locations, _ = located(model)
    corner = torch.rand(200, 2) * 200
    boxes = torch.cat([corner, corner + 2 + torch.rand(200, 2) * 90], 1)
    truth = [instances(boxes, torch.randint(0, 5, (200,)), (250, 318)) for _ in range(2)]
    truths = Targets.from_instances(truth, "cpu")
    with Watch() as watch:
        losses = model.losses(locations, predictions(locations), truths, None)
        sum(losses.values()).backward()
    # The largest tensor holds at most two coordinates of a chunk's pairs.
    assert watch.largest <= 2 * 2 * model.chunk_size * len(locations.anchors)


def test_a_box_without_a_location_adds_a_constant():
    model = autoassign()
    locations, in_image = located(model)
    given = Predictions(*(x[:1].detach().requires_grad_() for x in predictions(locations)))
    tiny = [instances(torch.tensor([[17.0, 17, 23, 23]]), torch.tensor([1]), (250, 318))]
    losses = model.losses(locations, given, Targets.from_instances(tiny, "cpu"), in_image[:1])
    assert losses["loss_pos"].item() == pytest.approx(0.25 * 100)
    inputs = [*given, *model.center_prior.parameters()]
    gradients = torch.autograd.grad(losses["loss_pos"], inputs)
    assert all((x == 0).all() for x in gradients)
    assert losses["loss_center"] == 0


def test_a_batch_without_boxes_keeps_the_graph():
    model = autoassign()
    locations, in_image = located(model)
    given = predictions(locations)
    truth = [instances(torch.zeros(0, 4), torch.zeros(0).long(), (250, 318)) for _ in range(2)]
    truths = Targets.from_instances(truth, "cpu")
    losses = model.losses(locations, given, truths, in_image)
    assert losses["loss_pos"] == 0 and losses["loss_center"] == 0
    joint = (given.logits.sigmoid() * given.quality.sigmoid()[..., None]).double()
    raw = 0.75 * (-(joint**2) * (1 - joint).log()).sum()
    torch.testing.assert_close(losses["loss_neg"].double(), raw, rtol=1e-4, atol=0)
    gradients = torch.autograd.grad(
        sum(losses.values()), [*given, *model.center_prior.parameters()]
    )
    assert all(x.isfinite().all() for x in gradients)
    assert (model.assign(locations, given, truths, in_image) == -1).all()


# Boxes of one pixel, of no size, outside the image, and as large as the image.
ODD = [(7.5, 7.5, 8.5, 8.5), (5, 5, 5, 5), (-90, -90, -50, -40), (0, 0, 64, 64)]


@pytest.mark.parametrize("force_topk", [False, True])
@pytest.mark.parametrize("boxes", [[], ODD], ids=["none", "odd"])
def test_a_step_trains_every_parameter(boxes, force_topk):
    model = autoassign(num_classes=3, force_topk=force_topk).train()
    # The network runs in half precision, and the losses in float32.
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([toys.image(boxes), toys.image([], size=(96, 70), seed=1)])
    assert list(losses) == LOSSES
    assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.head.cls_score.weight.grad.abs().sum() > 0
    assert (model.center_prior.mu.grad.abs().sum() > 0) == bool(boxes)


def test_a_new_head_predicts_four_strides_and_two_percent():
    model = autoassign()
    locations, _ = located(model)
    output = model.predictions(model.head([torch.zeros(1, 8, *x.shape[2:]) for x in maps()]))
    boxes = model.decode(locations, output.regression)[0]
    sides = (boxes[:, 2:] - locations.centers) / locations.strides[:, None]
    torch.testing.assert_close(sides, torch.full_like(sides, 4.0))
    torch.testing.assert_close(output.logits.sigmoid(), torch.full_like(output.logits, 0.02))
    # Points are at (stride * column, stride * row).
    assert locations.centers[:2].tolist() == [[0, 0], [8, 0]]


def test_the_prior_is_inherited_by_name():
    names = dict(autoassign().named_parameters())
    assert {"center_prior.mu", "center_prior.sd"} <= set(names)
    assert names["center_prior.mu"].shape == names["center_prior.sd"].shape == (5, 2)


def test_a_head_without_objectness_is_refused():
    with pytest.raises(ValueError, match="AutoAssign: expected a head with a quality branch"):
        detector(AutoAssign, head=dict(quality=False))
