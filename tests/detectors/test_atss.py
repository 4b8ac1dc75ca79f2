"""Compare ATSS with numbers of the released code and with a loop over locations."""

import math

import pytest
import torch

from d2kd.detectors import ATSS
from d2kd.detectors.atss import centerness

from .scene import (
    close_detections,
    close_gradient,
    detector,
    images,
    located,
    maps,
    reference,
    targets,
    truth,
    unflatten,
)

NAMES = ("logits", "deltas", "quality")


def inputs() -> list[torch.Tensor]:
    """Outputs of the head, (2, R, D) each."""
    values = [reference(f"atss_iou.{name}").clone() for name in NAMES]
    values[2] = values[2][..., None]
    return [x.requires_grad_() for x in values]


def losses(model: ATSS, values: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    output = tuple(unflatten(x) for x in values)
    return model.forward_training(images(), maps(), output, truth())


def test_losses_and_gradients_equal_released_code():
    values = inputs()
    found = losses(detector(ATSS), values)
    for term, name in (("cls", "cls"), ("box_reg", "bbox"), ("iou", "iou")):
        expected = reference(f"atss_iou.loss_{name}_per_level").sum()
        torch.testing.assert_close(found[f"loss_{term}"], expected, rtol=1e-5, atol=0)
    sum(found.values()).backward()
    for x, name in zip(values, ("cls", "box", "quality"), strict=True):
        expected = f"atss_iou.grad_{name}"
        close_gradient(x.grad.view_as(reference(expected)), expected)


def test_losses_with_centerness_equal_released_code():
    found = losses(detector(ATSS, quality="centerness"), inputs())
    torch.testing.assert_close(found["loss_box_reg"].item(), 0.9766361, rtol=1e-5, atol=0)
    torch.testing.assert_close(found["loss_centerness"].item(), 0.6350336, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["iou", "centerness"])
def test_losses_equal_a_loop_over_locations(kind):
    model = detector(ATSS, quality=kind)
    locations, in_image = located(model)
    logits, deltas, quality = (x.detach().double() for x in inputs())
    boxes = model.decode(locations, deltas.float()).double().tolist()
    matched = [reference(f"atss.matched_gt{i}").tolist() for i in range(2)]
    count = sum(max(sum(k >= 0 for k in image), 1) for image in matched)
    focal = box = entropy = weights = 0.0
    for i in range(2):
        for r, k in enumerate(matched[i]):
            true_class = targets().classes[i, k].item() if k >= 0 else -1
            for c, x in enumerate(logits[i, r].tolist()):
                p = 1 / (1 + math.exp(-x))
                if c == true_class:
                    focal -= 0.25 * (1 - p) ** 2 * math.log(p)
                elif in_image[i, r]:
                    focal -= 0.75 * p**2 * math.log(1 - p)
            if k < 0:
                continue
            a, b = boxes[i][r], targets().boxes[i, k].double().tolist()
            area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
            w, h = (max(min(a[d + 2], b[d + 2]) - max(a[d], b[d]), 0) for d in (0, 1))
            hull = math.prod(max(a[d + 2], b[d + 2]) - min(a[d], b[d]) for d in (0, 1))
            union = area_a + area_b - w * h
            overlap = w * h / union
            x, y = locations.centers[r].tolist()
            sides = sorted((x - b[0], b[2] - x)), sorted((y - b[1], b[3] - y))
            center = math.sqrt(math.prod(low / high for low, high in sides))
            target, weight = (overlap, 1) if kind == "iou" else (center, center)
            weights += weight
            box += 2 * weight * (1 - overlap + (hull - union) / hull)
            p = 1 / (1 + math.exp(-quality[i, r].item()))
            entropy -= target * math.log(p) + (1 - target) * math.log(1 - p)
    found = model.losses(locations, model.predictions(tuple(unflatten(x) for x in inputs())),
                         targets(), in_image)  # fmt: skip
    expected = {
        "loss_cls": focal / count,
        "loss_box_reg": box / max(weights, 1),
        f"loss_{kind}": entropy / count,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5)


def test_detections_equal_released_code():
    with torch.no_grad():
        output = tuple(unflatten(x) for x in inputs())
        found = detector(ATSS).forward_inference(images(), maps(), output)
    close_detections(found, "atss_iou")


def test_candidates_at_inference_are_ranked_as_released():
    assert not detector(ATSS).rank_by_quality
    assert detector(ATSS, quality="centerness").rank_by_quality


def test_centerness():
    box = torch.tensor([10.0, 20.0, 30.0, 60.0])
    points = torch.tensor([[20.0, 40.0], [15.0, 40.0], [15.0, 30.0], [10.0, 40.0], [9.0, 70.0]])
    expected = torch.tensor([1, (5 / 15) ** 0.5, (5 / 15 * 10 / 30) ** 0.5, 0, 0])
    torch.testing.assert_close(centerness(points, box), expected)


def test_a_head_without_quality_logits_is_an_error():
    # Only a `PointHead` is checked when the model is built. Other heads are found in training.
    output = tuple(unflatten(x) for x in inputs()[:2])
    with pytest.raises(ValueError, match="expected a head with a quality branch, found one that"):
        detector(ATSS).forward_training(images(), maps(), output, truth())


def test_another_quality_is_an_error():
    with pytest.raises(ValueError, match="expected quality 'iou' or 'centerness', found 'gain'"):
        detector(ATSS, quality="gain")


def test_a_head_without_quality_is_an_error():
    with pytest.raises(ValueError, match="expected a head with a quality branch"):
        detector(ATSS, dict(quality=False))


def test_coding_of_boxes():
    model = detector(ATSS)
    locations, _ = located(model)
    boxes = torch.tensor([[[10.0, 20.0, 50.0, 90.0]]]).expand(2, len(locations.anchors), 4)
    coding = model.box2box_transform
    deltas = torch.stack([coding.get_deltas(locations.anchors, x) for x in boxes])
    torch.testing.assert_close(model.decode(locations, deltas), boxes, rtol=1e-4, atol=1e-3)
    # (gx - ax) / aw / 0.1 and ln(gw / aw) / 0.2 for the anchor of 64 pixels around (0, 0).
    expected = [30 / 64 / 0.1, 55 / 64 / 0.1, math.log(40 / 64) / 0.2, math.log(70 / 64) / 0.2]
    torch.testing.assert_close(deltas[0, 0], torch.tensor(expected))
