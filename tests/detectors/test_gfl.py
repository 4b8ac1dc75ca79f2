"""Compare GFL with numbers of the released code and with loops."""

import pytest
import torch

from d2kd.detectors import GFL, Predictions
from d2kd.detectors.gfl import distribution_focal_loss, integral, quality_focal_loss
from d2kd.detectors.losses import gather_targets, iou, one_hot
from tests import toys

from .scene import (
    SIZES,
    K,
    close,
    close_detections,
    close_gradient,
    detector,
    images,
    instances,
    located,
    maps,
    reference,
    targets,
    truth,
    unflatten,
)

HEAD = dict(box_channels=68, quality=False)


def gfl(**fields) -> GFL:
    return detector(GFL, HEAD, **fields)


def inputs() -> list[torch.Tensor]:
    """Outputs of the head, (2, R, D) each."""
    return [reference(f"gfl.{name}").clone().requires_grad_() for name in ("logits", "dist")]


def test_integral_equals_released_code():
    found = integral(reference("gfl.dist").unflatten(-1, (4, 17)))
    close(found, "gfl.distance_in_strides", rtol=1e-5, atol=1e-5)
    assert integral(torch.zeros(3, 17)).tolist() == [8, 8, 8]


def test_quality_focal_loss_equals_released_code():
    x = reference("gfl.qfl_x").clone().requires_grad_()
    label = reference("gfl.qfl_label")
    target = reference("gfl.qfl_score")[:, None] * one_hot(
        torch.where(label < x.shape[1], label, -1), x.shape[1]
    )
    found = quality_focal_loss(x, target).sum(1)
    close(found, "gfl.qfl_out", rtol=1e-5)
    found.sum().backward()
    close_gradient(x.grad, "gfl.qfl_grad")


def test_distribution_focal_loss_equals_released_code():
    x, target = reference("gfl.dfl_x"), reference("gfl.dfl_target")
    close(distribution_focal_loss(x, target), "gfl.dfl_out", rtol=1e-5)


def test_gradient_of_the_distribution_focal_loss():
    x = reference("gfl.dfl_x").double().requires_grad_()
    target = reference("gfl.dfl_target").double()
    distribution_focal_loss(x, target).sum().backward()
    p = x.detach().softmax(1)
    for row, y in enumerate(target.tolist()):  # softmax minus the weights of the two bins
        low = int(y)
        p[row, low] -= low + 1 - y
        p[row, low + 1] -= y - low
    torch.testing.assert_close(x.grad, p, rtol=1e-6, atol=1e-6)


def test_distribution_focal_loss_at_the_last_bin():
    x = torch.randn(17)
    expected = -x.log_softmax(0)[16]
    torch.testing.assert_close(distribution_focal_loss(x, torch.tensor(16.0)), expected)


def test_losses_and_gradients_equal_released_code():
    values = inputs()
    output = tuple(unflatten(x) for x in values)
    found = gfl().forward_training(images(), maps(), output, truth())
    for term, name in (("cls", "cls"), ("box_reg", "bbox"), ("dfl", "dfl")):
        expected = reference(f"gfl.loss_{name}_per_level").sum()
        torch.testing.assert_close(found[f"loss_{term}"], expected, rtol=1e-5, atol=0)
    sum(found.values()).backward()
    close_gradient(values[0].grad, "gfl.grad_cls")


def test_gradient_of_the_boxes_equals_a_loop_over_positives():
    model = gfl()
    locations, in_image = located(model)
    values = inputs()
    output = model.predictions(tuple(unflatten(x) for x in values))
    found = model.losses(locations, output, targets(), in_image)
    (found["loss_box_reg"] + found["loss_dfl"]).backward()
    dist = reference("gfl.dist").double().requires_grad_()
    total, weights = 0.0, 0.0
    for i in range(2):
        matched = reference(f"atss.matched_gt{i}")
        weight = reference(f"gfl.pos_weight{i}").double()
        for r, w in zip(reference(f"gfl.pos_index{i}").tolist(), weight, strict=True):
            side = dist[i, r].view(4, 17)
            stride = locations.strides[r].item()
            center, box = locations.centers[r].double(), targets().boxes[i, matched[r]].double()
            reach = stride * (side.softmax(1) * torch.arange(17)).sum(1)
            a = torch.cat([center - reach[:2], center + reach[2:]])
            sides = torch.minimum(a[2:], box[2:]) - torch.maximum(a[:2], box[:2])
            inner = sides.clamp(min=0).prod()
            hull = (torch.maximum(a[2:], box[2:]) - torch.minimum(a[:2], box[:2])).prod()
            union = (a[2:] - a[:2]).prod() + (box[2:] - box[:2]).prod() - inner
            total = total + 2 * w * (1 - inner / union + (hull - union) / hull)
            y = (torch.cat([center - box[:2], box[2:] - center]) / stride).clamp(0, 15.9)
            low, log = y.long(), side.log_softmax(1)
            for s, (k, t) in enumerate(zip(low.tolist(), y.tolist(), strict=True)):
                total = total - 0.25 * w / 4 * ((k + 1 - t) * log[s, k] + (t - k) * log[s, k + 1])
            weights += w
    (total / max(weights, 1)).backward()
    difference = (values[1].grad - dist.grad).abs().max()
    assert difference <= 1e-5 * dist.grad.abs().max()


def test_positives_weights_and_ious_equal_released_code():
    model = gfl()
    locations, in_image = located(model)
    logits, dist = (x.detach() for x in inputs())
    matched = model.assign(locations, None, targets(), in_image)
    boxes, _ = gather_targets(targets(), matched)
    overlap = iou(model.decode(locations, dist), boxes)
    for i in range(2):
        index = (matched[i] >= 0).nonzero().flatten()
        assert torch.equal(index, reference(f"gfl.pos_index{i}"))
        close(overlap[i, index], f"gfl.pos_iou{i}")
        close(logits[i, index].sigmoid().amax(-1), f"gfl.pos_weight{i}")


def test_detections_equal_released_code():
    with torch.no_grad():
        output = tuple(unflatten(x) for x in inputs())
        found = gfl().forward_inference(images(), maps(), output)
    close_detections(found, "gfl")


def test_sides_beyond_the_last_bin_are_finite():
    # On P3, 16 bins reach 16 * 8 pixels. The sides of these boxes are farther away.
    huge = [
        instances(torch.tensor([[-500.0, -500.0, 900.0, 900.0]]), torch.tensor([0]), size)
        for size in SIZES
    ]
    values = inputs()
    output = tuple(unflatten(x) for x in values)
    found = gfl().forward_training(images(), maps(), output, huge)
    assert found["loss_dfl"] > 0
    sum(found.values()).backward()
    assert all(loss.isfinite() for loss in found.values())
    assert all(x.grad.isfinite().all() for x in values)


def test_another_number_of_bins():
    model = detector(GFL, dict(box_channels=4 * 9, quality=False), reg_max=8)
    locations, _ = located(model)
    boxes = model.decode(locations, torch.zeros(2, len(locations.anchors), 36))
    sides = (boxes[..., 2:] - boxes[..., :2])[0] / locations.strides[:, None]
    torch.testing.assert_close(sides, torch.full_like(sides, 2 * 4))


def test_a_head_with_other_channels_is_an_error():
    message = r"GFL: expected a head with 68 box channels, found 4"
    with pytest.raises(ValueError, match=message):
        detector(GFL, dict(quality=False))
    with pytest.raises(ValueError, match=r"GFL: .* no quality branch, found a quality branch"):
        detector(GFL, dict(box_channels=68))


def test_distances_beyond_the_last_bin_end_before_it():
    # The sides are thousands of pixels away. All distances become 15.9 strides, which lies between
    # the last two bins.
    model = gfl()
    locations, in_image = located(model)
    r = len(locations.anchors)
    huge = toys.targets([(-5000.0, -5000.0, 5320.0, 5256.0)], size=(256, 320))
    predictions = Predictions(torch.zeros(1, r, K), torch.randn(1, r, 68), None)
    positive = model.assign(locations, predictions, huge, in_image[:1])[0] >= 0
    assert positive.any()
    log_p = predictions.regression.view(r, 4, 17)[positive].log_softmax(-1)
    # All weights are equal. Their sum divides the loss if it is at least 1.
    weights = 0.5 * positive.sum()
    expected = -(0.1 * log_p[..., 15] + 0.9 * log_p[..., 16]).mean(-1)
    expected = 0.25 * (0.5 * expected).sum() / weights.clamp(min=1)
    found = model.losses(locations, predictions, huge, in_image[:1])["loss_dfl"]
    torch.testing.assert_close(found, expected)


def test_box_losses_are_divided_by_the_mean_weight_over_processes(monkeypatch):
    model = gfl()
    locations, in_image = located(model)
    predictions = Predictions(*inputs(), None)
    alone = model.losses(locations, predictions, targets(), in_image)
    sums = []
    monkeypatch.setattr("d2kd.detectors.gfl.reduce_mean", lambda x: sums.append(x) or 2 * x)
    shared = model.losses(locations, predictions, targets(), in_image)
    assert len(sums) == 1 and sums[0] > 1
    torch.testing.assert_close(shared["loss_box_reg"], alone["loss_box_reg"] / 2)
    torch.testing.assert_close(shared["loss_dfl"], alone["loss_dfl"] / 2)
    torch.testing.assert_close(shared["loss_cls"], alone["loss_cls"])
