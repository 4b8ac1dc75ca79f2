"""FGD against the released code's numbers, and against loops over boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec

from d2kd.methods.base import LevelPair
from d2kd.methods.fgd import FGD, GlobalContext, attention, box_masks
from tests import toys

# Inputs and outputs of yzd-v/FGD @ c03a6cf in float64 (its inverse areas are float32).
REFERENCE = np.load(Path(__file__).parents[1] / "fixtures" / "fgd_reference.npz")


def reference(name: str) -> torch.Tensor:
    return torch.from_numpy(REFERENCE[name])


@pytest.fixture
def released_boxes():
    """Ground truth of the fixture and the released scale: cells over unpadded image size."""
    boxes, valid = torch.zeros(2, 3, 4, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.bool)
    for i in range(2):
        found = reference(f"boxes{i}")
        boxes[i, : len(found)], valid[i, : len(found)] = found, True
    scale = torch.tensor([[16 / w, 12 / h] for h, w, _ in REFERENCE["img_shape"]])
    return boxes, valid, scale


def released_fgd() -> FGD:
    tau, alpha, beta, gamma, lambd = REFERENCE["hyper"]
    fgd = FGD(tau=tau, alpha=alpha, beta=beta, gamma=gamma, lambd=lambd)
    shape = ShapeSpec(channels=16, stride=8)
    fgd.setup_level(LevelPair("p3", "p3", shape, shape))
    for side, block in (("s", fgd.student_context.p3), ("t", fgd.teacher_context.p3)):
        for name, p in block.double().named_parameters():
            layer, rest = name.split(".", 1)
            released = {"key": "w_conv_mask", "transform": "w_channel_add_conv"}[layer]
            # The released layers are 1x1 convolutions.
            p.data = reference(f"{released}_{side}.{rest}").view_as(p)
    return fgd


def test_masks_equal_released_code(released_boxes):
    foreground, background = box_masks(*released_boxes[:2], (12, 16), released_boxes[2])
    torch.testing.assert_close(foreground, reference("mask_fg"), rtol=1e-6, atol=0)
    torch.testing.assert_close(background, reference("mask_bg"), rtol=1e-6, atol=0)


@pytest.mark.parametrize("side, name", [("s", "student"), ("t", "teacher")])
def test_attention_equals_released_code(side, name):
    spatial, channel = attention(reference(name), tau=0.5)
    torch.testing.assert_close(spatial, reference(f"As_{side}"), rtol=1e-9, atol=0)
    torch.testing.assert_close(channel, reference(f"Ac_{side}"), rtol=1e-9, atol=0)


def test_terms_equal_released_code(released_boxes):
    masks = box_masks(*released_boxes[:2], (12, 16), released_boxes[2])
    student, teacher = reference("student"), reference("teacher")
    fgd = released_fgd()
    terms = fgd.terms("p3", student, teacher, *masks)
    for term, name, weight in (
        ("foreground", "out_fg", 1e-3),
        ("background", "out_bg", 5e-4),
        ("attention", "out_att", 5e-4),
        ("relation", "out_rel", 5e-6),
    ):
        torch.testing.assert_close(terms[term], weight * reference(name), rtol=1e-6, atol=0)
    total = sum(terms.values())
    torch.testing.assert_close(total, reference("out_total"), rtol=1e-6, atol=0)


def test_context_block_is_the_identity_at_first():
    features = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(GlobalContext(6)(features), features)


def masks_by_loop(boxes, valid, size, stride):
    """The released loop, with boxes mapped by the stride."""
    h, w = size
    foreground, background = np.zeros((len(boxes), h, w)), np.zeros((len(boxes), h, w))
    for i in range(len(boxes)):
        for (x0, y0, x1, y1), there in zip(boxes[i].tolist(), valid[i].tolist(), strict=True):
            if not there:
                continue
            left, top = int(np.floor(x0 / stride)), int(np.floor(y0 / stride))
            right, bottom = int(np.ceil(x1 / stride)), int(np.ceil(y1 / stride))
            value = 1 / ((right - left + 1) * (bottom - top + 1))
            for r in range(max(top, 0), min(bottom, h - 1) + 1):
                for c in range(max(left, 0), min(right, w - 1) + 1):
                    foreground[i, r, c] = max(foreground[i, r, c], value)
        rest = foreground[i] == 0
        background[i][rest] = 1 / max(rest.sum(), 1)
    return torch.from_numpy(foreground).float(), torch.from_numpy(background).float()


@pytest.mark.parametrize("boxes_per_image", [0, 1, 7, 500])
def test_masks_equal_a_loop_over_boxes(boxes_per_image):
    corner = torch.rand(2, boxes_per_image, 2) * 220 - 30  # some leave the image
    boxes = torch.cat([corner, corner + torch.rand(2, boxes_per_image, 2) * 90], 2)
    valid = torch.rand(2, boxes_per_image) < 0.8
    found = box_masks(boxes, valid, (13, 17), 1 / 8)
    for mask, expected in zip(found, masks_by_loop(boxes, valid, (13, 17), 8), strict=True):
        torch.testing.assert_close(mask, expected, rtol=1e-5, atol=0)


def test_box_in_one_cell_covers_two_by_two():
    # The upper left corner is rounded down and the lower right one up, both inclusive.
    boxes, valid = torch.tensor([[[9.0, 17.0, 10.0, 18.0]]]), torch.tensor([[True]])
    foreground, background = box_masks(boxes, valid, (4, 4), 1 / 8)
    expected = torch.zeros(1, 4, 4)
    expected[0, 2:4, 1:3] = 1 / 4
    torch.testing.assert_close(foreground, expected)
    assert background.sum() == pytest.approx(1) and background[0, 2, 1] == 0


def test_boxes_follow_the_padded_frame():
    # 40 px of a 48 px wide image in a batch padded to 64: cells 0 to 5 of stride 8, wherever the
    # image ends. The released code would stretch the box to 40 / 48 of the map.
    boxes, valid = torch.tensor([[[0.0, 0.0, 40.0, 8.0]]]), torch.tensor([[True]])
    foreground, _ = box_masks(boxes, valid, (8, 8), 1 / 8)
    assert (foreground[0, 0] > 0).nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[3.0, 3.0, 4.0, 4.0]],  # one pixel
        [[5.0, 5.0, 5.0, 5.0]],  # no area
        [[-90.0, -90.0, -50.0, -40.0]],  # outside the image
        [[0.0, 0.0, 64.0, 64.0]],  # the whole image: no background
    ],
    ids=["none", "one pixel", "empty", "off the image", "whole image"],
)
@pytest.mark.parametrize("size", [(8, 8), (1, 1)])
def test_edge_boxes_give_finite_losses_with_gradient(boxes, size):
    fgd = FGD()
    shape = ShapeSpec(channels=6, stride=8)
    pair = LevelPair("p3", "p3", shape, shape)
    fgd.setup_level(pair)
    student = torch.randn(1, 6, *size, requires_grad=True)
    terms = fgd.compare(pair, student, torch.randn(1, 6, *size), toys.targets(boxes))
    gradient = torch.autograd.grad(sum(terms.values()), student)[0]
    assert all(torch.isfinite(v) and v.requires_grad for v in terms.values())
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_teacher_attention_carries_no_gradient_to_either_term_but_attention():
    student = torch.randn(1, 6, 4, 4, requires_grad=True)
    teacher = torch.randn(1, 6, 4, 4)
    masks = torch.full((1, 4, 4), 0.1), torch.zeros(1, 4, 4)
    fgd = FGD(alpha=1)
    shape = ShapeSpec(channels=6, stride=8)
    fgd.setup_level(LevelPair("p3", "p3", shape, shape))
    loss = fgd.terms("p3", student, teacher, *masks)["foreground"]
    spatial, channel = attention(teacher, 0.5)
    weight = 0.1 * spatial[:, None] * channel[..., None, None]
    expected = -2 * weight * (teacher - student)  # the derivative of weight * (t - s)^2
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], expected)


def test_impossible_temperature_is_refused():
    with pytest.raises(ValueError, match=r"FGD.tau: expected a number > 0, found 0"):
        FGD(tau=0)
