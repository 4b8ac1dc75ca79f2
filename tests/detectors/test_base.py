"""Test locations and inference against the released code and by hand, and train whole models."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import nn

from d2kd.detectors import ATSS, GFL
from tests import toys

from ..waits import Waits
from .scene import (
    GRIDS,
    SIZES,
    K,
    detector,
    images,
    located,
    maps,
    plain,
    reference,
    targets,
    unflatten,
)

R = sum(h * w for h, w in GRIDS)
MODELS = {
    "atss": lambda **fields: detector(ATSS, **fields),
    "atss-centerness": lambda **fields: detector(ATSS, quality="centerness", **fields),
    "gfl": lambda **fields: detector(GFL, dict(box_channels=68, quality=False), **fields),
}


def infer(model, logits, boxes=None, quality=None):
    """Detections for logits (2, R, K), boxes (2, R, 4) and quality (2, R)."""
    if boxes is None:  # the boxes do not overlap, so that NMS keeps all
        x = torch.arange(R).float()
        boxes = torch.stack([x % 300, x // 300, x % 300 + 0.5, x // 300 + 0.5], 1).expand(2, R, 4)
    output = [logits, boxes] if quality is None else [logits, boxes, quality[..., None]]
    return model.forward_inference(images(), maps(), tuple(unflatten(x) for x in output))


def nothing():
    return torch.full((2, R, K), -20.0)


def test_locations_equal_released_code():
    locations, in_image = located(plain())
    assert torch.equal(locations.anchors, reference("scene.anchors"))
    assert torch.equal(locations.centers, reference("scene.points_no_offset"))
    assert locations.counts == tuple(h * w for h, w in GRIDS)
    assert torch.equal(locations.strides, torch.tensor(toys.STRIDES)[reference("scene.level")])
    for i in range(2):
        assert torch.equal(in_image[i], reference(f"scene.valid{i}").bool())


def test_without_a_divisor_all_locations_are_in_the_image():
    model = plain()
    model.pad_size_divisor = 0
    assert located(model)[1].all()


def test_locations_take_strides_from_the_backbone():
    sizes = [[3.0 * stride] for stride in toys.STRIDES]
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[1.0], strides=toys.STRIDES, offset=0.5
    )
    locations, in_image = located(plain(anchor_generator=generator))
    assert locations.strides.unique().tolist() == list(toys.STRIDES)
    assert locations.anchors[0].tolist() == [-8, -8, 16, 16]
    assert torch.equal(in_image[1], reference("scene.valid1").bool())


@pytest.mark.parametrize(
    "sizes, strides", [([[8, 16]] * 5, toys.STRIDES), ([[8]] * 5, (4, 8, 16, 32, 64))]
)
def test_anchors_that_do_not_fit_are_an_error(sizes, strides):
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[1.0], strides=strides)
    with pytest.raises(ValueError, match=r"one anchor at each location of the strides \[8, 16"):
        plain(anchor_generator=generator)


def test_threshold_comes_before_the_quality():
    logits, quality = nothing(), torch.full((2, R), 9.0)
    logits[0, 7, 2] = torch.logit(torch.tensor(0.06))
    logits[0, 8, 2] = torch.logit(torch.tensor(0.04))
    quality[0, 7] = torch.logit(torch.tensor(0.1))
    found, empty = infer(plain(), logits, quality=quality)
    torch.testing.assert_close(found.scores, torch.tensor([0.006]))
    assert found.pred_classes.tolist() == [2]
    assert len(empty) == 0


def test_candidates_are_locations_and_not_pairs():
    logits = nothing()
    logits[0, 3], logits[0, 4, 1], logits[0, 5, 1] = 3.0, 2.0, 1.0
    logits[0, -1, 0] = 0.0  # another level
    found = infer(plain(test_topk_candidates=2), logits)[0]
    torch.testing.assert_close(found.scores, torch.tensor([3.0] * K + [2.0, 0.0]).sigmoid())


def test_rank_by_quality():
    logits, quality = nothing(), torch.zeros(2, R)
    logits[0, 3, 0], logits[0, 4, 1] = 2.0, 1.0
    quality[0, 3] = -9.0
    model = plain(test_topk_candidates=1)
    assert infer(model, logits, quality=quality)[0].pred_classes.tolist() == [0]
    model.rank_by_quality = True
    assert infer(model, logits, quality=quality)[0].pred_classes.tolist() == [1]


def test_boxes_are_clipped_before_nms():
    logits, boxes = nothing(), torch.zeros(2, R, 4)
    logits[0, 3, 0], logits[0, 4, 0] = 2.0, 1.0
    boxes[0, 3], boxes[0, 4] = torch.tensor([[300.0, 9, 400, 50], [300.0, 9, 1000, 50]])
    found = infer(plain(), logits, boxes)[0]
    assert found.pred_boxes.tensor.tolist() == [[300, 9, 318, 50]]
    assert found.image_size == SIZES[0]


def test_detections_are_the_best_of_each_image():
    logits = torch.randn(2, R, K)
    for i, found in enumerate(infer(plain(max_detections_per_image=30), logits)):
        best = logits[i].flatten().sigmoid().topk(30)[0]
        torch.testing.assert_close(found.scores, best)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains(name):
    model = MODELS[name](num_classes=3)
    # GFL weights its box losses by probabilities. With small ones, its loss would first grow.
    nn.init.zeros_(model.head.cls_score.bias)
    inputs = [toys.image(seed=0, size=(64, 96)), toys.image(seed=1)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    totals = []
    for _ in range(8):
        total = sum(model(inputs).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_finite_and_reach_every_parameter(name, counts):
    model = MODELS[name]()
    boxes = [[(8.0, 8.0, 40.0, 40.0), (20.0, 20.0, 21.0, 21.0), (-90.0, 200.0, -20.0, 280.0)]]
    losses = model([toys.image((boxes * n or [()])[0], seed=n) for n in counts])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
    assert model.head.cls_score.bias.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MODELS)
def test_losses_in_half_precision(name):
    model = MODELS[name]()
    expected = model(toys.batch())
    with torch.autocast("cpu", torch.bfloat16):
        found = model(toys.batch())
    for term, loss in found.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[term], rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_padding_for_another_image_changes_nothing(name):
    """Values of the maps outside the image's own frame do not change the losses."""
    model = MODELS[name]()
    output = model.head([torch.randn(1, 8, *grid) for grid in GRIDS])
    truth = toys.image(size=(100, 150))["instances"]
    losses = []
    for value in (0.0, 5.0):
        for maps_ in output:
            for x, stride in zip(maps_, model.strides, strict=True):
                x = x.detach()
                x[..., -(-128 // stride) :, :] = value
                x[..., -(-160 // stride) :] = value
        features = [torch.zeros(1, 8, *grid) for grid in GRIDS]
        losses.append(model.forward_training(None, features, output, [truth]))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", MODELS)
def test_losses_do_not_wait_for_the_device(name):
    model = MODELS[name]()
    output = model.head([torch.randn(2, 8, *grid) for grid in GRIDS])
    locations, in_image = located(model)
    truths = targets()
    with Waits() as waits:
        losses = model.losses(locations, model.predictions(output), truths, in_image)
        sum(losses.values()).backward()
    assert waits.found == []


def test_a_head_that_does_not_fit_is_an_error():
    for head, message in (
        (dict(num_classes=4), "expected a head with 5 classes, found 4 classes"),
        (dict(box_channels=5), "expected a head with 4 box channels, found 5 box channels"),
        (dict(input_shape=[ShapeSpec(channels=9)] * 5), "with 8 input channels, found 9"),
        (dict(input_shape=[ShapeSpec(channels=8)] * 4), "with 5 levels, found 4 levels"),
        (dict(quality=False), "with a quality branch, found no quality branch"),
    ):
        with pytest.raises(ValueError, match=message):
            plain(head=head)


@pytest.mark.parametrize("name", MODELS)
def test_a_class_that_is_too_large_is_an_error(name):
    with pytest.raises(RuntimeError, match="out of bounds"):
        MODELS[name]()([toys.image(classes=[K + 2])])


def test_head_levels_can_be_chosen():
    model = detector(
        ATSS, dict(input_shape=[ShapeSpec(channels=8)] * 2), head_in_features=["p3", "p5"]
    )
    assert model.strides == [8, 32]
    model(toys.batch())
