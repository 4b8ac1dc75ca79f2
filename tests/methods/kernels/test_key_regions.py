"""Key regions against the released code's numbers, and against loops over boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from d2kd.methods.kernels import key_regions as module
from d2kd.methods.kernels.key_regions import fitted_gaussians, key_regions, pairs_inside
from d2kd.methods.kernels.location_weights import (
    RIDGE,
    center_prior,
    density,
    fit_gaussian,
    quality,
    score_and_iou,
    strictly_inside,
    top_k,
)
from d2kd.targets import Targets

# Inputs and outputs of ChenhongyiYang/PGD @ 81c54d5 in float32.
REFERENCE = np.load(Path(__file__).parents[2] / "fixtures" / "pgd_reference.npz")


def reference(name: str) -> torch.Tensor:
    return torch.from_numpy(REFERENCE[name])


def targets(boxes, classes=None, valid=None, sizes=(96, 128)) -> Targets:
    """Ground truth with G boxes, (N, G, 4), in each image."""
    n, g = boxes.shape[:2]
    classes = torch.zeros(n, g, dtype=torch.long) if classes is None else classes
    valid = torch.ones(n, g, dtype=torch.bool) if valid is None else valid
    classes = classes.where(valid, -1)
    return Targets(boxes, classes, valid, torch.tensor(sizes).expand(n, 2), (g,) * n)


# ---- the released code


def jittered(points: torch.Tensor, noise: str) -> torch.Tensor:
    return points + (reference(noise) - 0.5) * 0.1


def everything(points: torch.Tensor) -> torch.Tensor:
    return torch.ones(points.shape[:-1], dtype=torch.bool)


@pytest.fixture
def scene():
    """Logits, predicted boxes, centers and targets of the released code's scene."""
    anchors = reference("C.anchors")
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    truth = targets(reference("C.gts")[None], reference("C.labels")[None], sizes=(256, 320))
    return reference("C.logits")[None], reference("C.boxes")[None], centers, truth


def test_fit_equals_released_code():
    points = jittered(reference("B.X"), "B.noise")
    mean, inverse = fit_gaussian(points, everything(points), ridge=0)
    torch.testing.assert_close(mean, reference("B.mu")[:, 0].double(), rtol=1e-6, atol=0)
    # The second set is flat, so that float32 leaves noise in its smallest entries.
    for found, expected in zip(inverse, reference("B.inverse").double(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.max().item())
    torch.testing.assert_close(1 / inverse.det(), reference("B.det").double(), rtol=1e-5, atol=0)


def test_ridge_has_the_variance_of_the_jitter():
    # For points in one place only the jitter remains. K draws have (1 - 1/K) of its variance.
    place = torch.full((2000, 30, 2), 500.0, dtype=torch.float64)
    points = place + (torch.rand_like(place) - 0.5) * 0.1
    _, inverse = fit_gaussian(points, everything(points), ridge=0)
    covariance = inverse.inverse().mean(0)
    expected = torch.eye(2, dtype=torch.float64) * RIDGE * 29 / 30
    torch.testing.assert_close(covariance, expected, rtol=0.02, atol=0.02 * RIDGE)


@pytest.mark.parametrize("task, xi", [("cls", 0.8), ("reg", 0.6)])
def test_choice_equals_released_code(scene, task, xi):
    logits, boxes, _, truth = scene
    q = quality(*score_and_iou(logits, boxes, truth.boxes, truth.classes), xi)
    _, rows = top_k(q, torch.ones_like(q, dtype=torch.bool), 30)
    assert torch.equal(rows[0], reference(f"C.topk_{task}_xi{xi}_K30").T)


@pytest.mark.parametrize("task, xi", [("cls", 0.8), ("reg", 0.6)])
def test_weights_equal_released_code_with_its_jitter(scene, task, xi):
    _, _, centers, truth = scene
    rows = reference(f"C.topk_{task}_xi{xi}_K30").T[None]
    points = centers[rows]
    fit = fit_gaussian(jittered(points, "C.noise_K30"), everything(points), ridge=0)
    inside = strictly_inside(centers, truth.boxes).gather(-1, rows)
    mask = torch.zeros(1706, dtype=torch.float64)
    mask.scatter_reduce_(0, rows.flatten(), (density(points, *fit) * inside).flatten(), "amax")
    expected = reference(f"C.{task}_xi{xi}_K30").double()
    torch.testing.assert_close(mask, expected, rtol=0, atol=2e-6)


def test_masks_are_the_released_ones_but_for_the_jitter(scene):
    (cls, reg), background = key_regions(*scene, xis=(0.8, 0.6), candidates="image")
    assert torch.equal(background[0], reference("C.bg"))
    for found, name in ((cls, "C.cls_xi0.8_K30"), (reg, "C.reg_xi0.6_K30")):
        expected = reference(name)
        assert torch.equal(found[0] > 0, expected > 0)
        # The jitter moves a mean by 0.03 px / sqrt(30), where the regions are 10 px wide.
        torch.testing.assert_close(found[0], expected, rtol=0, atol=2e-3)


def test_background_of_centers_off_the_grids_corners_is_the_released_one(scene):
    # FCOS's centers lie half a stride further than the centers of the scene's anchors.
    logits, boxes, centers, truth = scene
    strides = torch.tensor([8, 16, 32, 64, 128])[reference("C.level")]
    centers = centers + strides[:, None] / 2
    _, background = key_regions(logits, boxes, centers, truth, xis=(0.8,), weighting="box")
    assert background.sum() == 1199


# ---- loops


def regions_by_loop(logits, boxes, centers, truth, xi, k, candidates, weighting, limits):
    """Foreground and background in float64, by a loop over boxes."""
    logits, boxes, centers = (x.double().numpy() for x in (logits, boxes, centers))
    n, r = boxes.shape[:2]
    foreground, background = np.zeros((n, r)), np.ones((n, r))
    for i in range(n):
        usable = (centers < limits[i]).all(1)
        background[i, ~usable] = 0
        for box, c, there in zip(truth.boxes[i], truth.classes[i], truth.valid[i], strict=True):
            if not there:
                continue
            x0, y0, x1, y1 = box.tolist()
            x, y = centers.T
            inside = (x > x0) & (y > y0) & (x < x1) & (y < y1) & usable
            background[i, inside] = 0
            weight = np.zeros(r)
            if weighting == "box":
                weight[:] = 1
            elif weighting == "center":
                middle = np.array([x0 + x1, y0 + y1]) / 2
                variance = np.array([x1 - x0, y1 - y0]) ** 2 / 12 + 1 / 1200
                weight = np.exp(-0.5 * ((centers - middle) ** 2 / variance).sum(1))
            else:
                px0, py0, px1, py1 = boxes[i].T
                width = (np.minimum(px1, x1) - np.maximum(px0, x0)).clip(0)
                common = width * (np.minimum(py1, y1) - np.maximum(py0, y0)).clip(0)
                union = (px1 - px0) * (py1 - py0) + (x1 - x0) * (y1 - y0) - common
                score = 1 / (1 + np.exp(-logits[i, :, c if logits.shape[2] > 1 else 0]))
                q = score ** (1 - xi) * (common / union) ** xi
                where = np.flatnonzero(inside if candidates == "box" else usable)
                chosen = where[np.argsort(-q[where], kind="stable")[:k]]
                if weighting == "quality":
                    weight[chosen] = q[chosen]
                elif len(chosen):
                    d = centers[chosen] - centers[chosen].mean(0)
                    inverse = np.linalg.inv(d.T @ d / len(chosen) + np.eye(2) / 1200)
                    weight[chosen] = np.exp(-0.5 * np.einsum("ki,ij,kj->k", d, inverse, d))
            foreground[i] = np.maximum(foreground[i], weight * inside)
    return torch.from_numpy(foreground).float(), torch.from_numpy(background).float()


def random_scene(boxes_per_image, n=2, num_classes=3, classes_of_logits=3):
    """Two levels over 128 x 96 px; every location predicts about a box around itself."""
    centers = torch.cat(
        [
            torch.cartesian_prod(torch.arange(s / 2, 96, s), torch.arange(s / 2, 128, s)).flip(1)
            for s in (8, 16)
        ]
    )
    r = len(centers)
    sides = torch.rand(n, r, 2) * 30 + 30
    middle = centers + torch.randn(n, r, 2) * 6
    boxes = torch.cat([middle - sides / 2, middle + sides / 2], -1)
    corner = torch.rand(n, boxes_per_image, 2) * 120 - 20  # some leave the image
    truth = torch.cat([corner, corner + torch.rand(n, boxes_per_image, 2) * 60 + 20], -1)
    classes = torch.randint(num_classes, (n, boxes_per_image))
    valid = torch.rand(n, boxes_per_image) < 0.8
    logits = torch.randn(n, r, classes_of_logits)
    return logits, boxes, centers, targets(truth, classes, valid)


def distinct(scene, k):
    """Boxes that can choose k locations of positive quality, so that no choice is a tie."""
    logits, boxes, centers, truth = scene
    iou = score_and_iou(logits, boxes, truth.boxes, truth.classes)[1]
    inside = strictly_inside(centers, truth.boxes)
    enough = ((iou > 0) & inside).sum(-1) >= inside.sum(-1).clamp(max=k)
    return logits, boxes, centers, targets(truth.boxes, truth.classes, truth.valid & enough)


@pytest.mark.parametrize("weighting", ["gaussian", "quality", "box", "center"])
@pytest.mark.parametrize("candidates", ["box", "image"])
@pytest.mark.parametrize("boxes_per_image", [0, 1, 7, 500])
def test_regions_equal_a_loop_over_boxes(weighting, candidates, boxes_per_image):
    scene = distinct(random_scene(boxes_per_image), 9)
    options = dict(k=9, candidates=candidates, weighting=weighting)
    foregrounds, background = key_regions(*scene, xis=(0.8, 0.6), **options)
    for foreground, xi in zip(foregrounds, (0.8, 0.6), strict=True):
        expected = regions_by_loop(*scene, xi, **options, limits=[[1e9, 1e9]] * 2)
        torch.testing.assert_close(foreground, expected[0], rtol=1e-4, atol=1e-6)
        assert torch.equal(background, expected[1])


@pytest.mark.parametrize("candidates", ["box", "image"])
def test_padding_of_each_image_is_neither_foreground_nor_background(candidates):
    logits, boxes, centers, truth = distinct(random_scene(7), 9)
    truth = Targets(
        *(truth.boxes, truth.classes, truth.valid), torch.tensor([[60, 90], [96, 33]]), truth.counts
    )
    options = dict(k=9, candidates=candidates, weighting="gaussian")
    (foreground,), background = key_regions(
        logits, boxes, centers, truth, xis=(0.8,), padding=32, **options
    )
    expected = regions_by_loop(
        logits, boxes, centers, truth, 0.8, **options, limits=[[96, 64], [64, 96]]
    )
    torch.testing.assert_close(foreground, expected[0], rtol=1e-4, atol=1e-6)
    assert torch.equal(background, expected[1])
    beyond = centers[:, 0] > 96
    assert beyond.any() and not background[0, beyond].any() and not foreground[0, beyond].any()


@pytest.mark.parametrize("weighting", ["gaussian", "quality"])
@pytest.mark.parametrize("boxes_per_image", [1, 7, 60])
@pytest.mark.parametrize("padding", [0, 32])
def test_pairs_inside_in_tables_equal_a_table_of_all_pairs(
    weighting, boxes_per_image, padding, monkeypatch
):
    scene = distinct(random_scene(boxes_per_image), 9)
    scene[-1].sizes[1] = torch.tensor([60, 90])
    options = dict(xis=(0.8, 0.6), k=9, weighting=weighting, padding=padding)
    found = key_regions(*scene, **options)
    with monkeypatch.context() as patch:  # as on a GPU
        patch.setattr(torch.Tensor, "is_cuda", True)
        patch.setattr(module, "pairs_inside", None)
        expected = key_regions(*scene, **options)
    for x, y in zip(found[0], expected[0], strict=True):
        assert torch.equal(x, y)
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_pairs_inside_are_those_strictly_inside(block):
    _, _, centers, truth = random_scene(9)
    usable = torch.rand(2, len(centers)) < 0.9
    inside = strictly_inside(centers, truth.boxes) & truth.valid[..., None] & usable[:, None]
    line, row = pairs_inside(centers, truth.boxes, truth.valid, usable, block)
    image, box, location = inside.nonzero().T
    assert inside.any()
    assert torch.equal(line, image * 9 + box)
    # The pairs of a box are in the order of the locations.
    assert torch.equal(row, image * len(centers) + location)


def test_one_logit_holds_for_boxes_of_every_class():
    scene = distinct(random_scene(7, classes_of_logits=1), 9)
    options = dict(k=9, candidates="box", weighting="gaussian")
    (foreground,), _ = key_regions(*scene, xis=(0.8,), **options)
    expected, _ = regions_by_loop(*scene, 0.8, **options, limits=[[1e9, 1e9]] * 2)
    assert scene[-1].classes.max() == 2
    torch.testing.assert_close(foreground, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weighting", ["gaussian", "center"])
def test_boxes_in_chunks_give_the_same(weighting):
    scene = random_scene(7)
    whole = key_regions(*scene, xis=(0.8,), weighting=weighting)
    parts = key_regions(*scene, xis=(0.8,), weighting=weighting, pairs=1)
    assert torch.equal(whole[0][0], parts[0][0]) and torch.equal(whole[1], parts[1])


# ---- by hand


def hand_scene(points, box):
    """One image with one box. All locations predict the box, with falling scores."""
    centers = torch.tensor(points, dtype=torch.float32)
    truth = targets(torch.tensor([[box]], dtype=torch.float32))
    logits = torch.linspace(2, -2, len(points))[None, :, None]
    return logits, truth.boxes.expand(1, len(points), 4), centers, truth


def test_choices_outside_the_box_waste_the_image_candidates():
    # The two locations with the highest scores are outside the box.
    scene = hand_scene([[90, 90], [80, 80], [10, 10], [20, 10], [15, 30]], [0, 0, 50, 50])
    image = key_regions(*scene, xis=(0.8,), k=3, candidates="image")[0][0]
    box = key_regions(*scene, xis=(0.8,), k=3, candidates="box")[0][0]
    assert (image[0] > 0).tolist() == [False, False, True, False, False]
    assert (box[0] > 0).tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("k", [1, 2, 30])
def test_fewer_locations_than_top_k(k):
    scene = hand_scene([[10, 10], [20, 10]], [0, 0, 50, 50])
    (foreground,), background = key_regions(*scene, xis=(0.8,), k=k)
    # One location is its own mean. Each of two is one standard deviation away from their mean.
    expected = [1.0, 0.0] if k == 1 else [np.exp(-0.5)] * 2
    assert foreground[0].tolist() == pytest.approx(expected, rel=1e-4)
    assert not background.any()


def test_locations_in_one_place_weigh_one():
    scene = hand_scene([[1000.5, 700.5]] * 4, [900, 600, 1100, 800])
    (foreground,), _ = key_regions(*scene, xis=(0.8,))
    assert foreground[0].tolist() == pytest.approx([1.0] * 4, rel=1e-6)


@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (1, 1), (3, -1)])
def test_locations_on_a_line_get_a_gaussian_along_it(direction):
    steps = np.array([-128.0, -8, 0, 8, 16, 112])
    points = np.array([1000, 700]) + steps[:, None] * direction
    scene = hand_scene(points.tolist(), [0, 0, 3000, 3000])
    (foreground,), _ = key_regions(*scene, xis=(0.8,))
    expected = np.exp(-0.5 * (steps - steps.mean()) ** 2 / steps.var())
    np.testing.assert_allclose(foreground[0].numpy(), expected, rtol=1e-4)


def test_edges_of_a_box_are_outside():
    scene = hand_scene([[10, 10], [20, 20], [30, 20], [20, 30], [10, 20]], [10, 10, 30, 30])
    (foreground,), background = key_regions(*scene, xis=(0.8,), weighting="box")
    assert foreground[0].tolist() == [0, 1, 0, 0, 0]
    assert background[0].tolist() == [1, 0, 1, 1, 1]


@pytest.mark.parametrize("weighting", ["gaussian", "quality", "box", "center"])
@pytest.mark.parametrize(
    "box",
    [[12, 12, 13, 13], [20, 20, 20, 20], [-90, -90, -50, -40]],
    ids=["one pixel", "empty", "off the image"],
)
def test_boxes_around_no_location_have_no_foreground(box, weighting):
    scene = hand_scene([[10, 10], [20, 20]], box)
    (foreground,), background = key_regions(*scene, xis=(0.8,), weighting=weighting)
    assert foreground[0].tolist() == [0, 0] and background[0].tolist() == [1, 1]


def test_center_prior_is_the_gaussian_of_a_whole_box():
    box = torch.tensor([[[100.0, 200.0, 180.0, 240.0]]])
    inside = torch.cartesian_prod(torch.arange(100.5, 180), torch.arange(200.5, 240))
    expected = density(inside, *fit_gaussian(inside, everything(inside)))
    torch.testing.assert_close(
        center_prior(inside, box)[0, 0].double(), expected, rtol=0, atol=2e-3
    )
    corner = center_prior(torch.tensor([[100.0, 200.0]]), box)
    assert corner.item() == pytest.approx(np.exp(-3), rel=1e-4)


@pytest.mark.parametrize("candidates", ["box", "image"])
def test_gaussians_have_mean_and_covariance_of_the_chosen_locations(candidates):
    logits, boxes, centers, truth = scene = distinct(random_scene(5), 9)
    options = dict(xis=(0.8,), k=9, candidates=candidates, padding=32)
    ((means, covariances),) = fitted_gaussians(*scene, **options)
    score, iou = score_and_iou(logits, boxes, truth.boxes, truth.classes)
    inside = strictly_inside(centers, truth.boxes)
    usable = (centers < torch.tensor([128.0, 96.0])).all(1)
    for i, g in np.ndindex(*truth.valid.shape):
        allowed = usable & inside[i, g] if candidates == "box" else usable
        where = allowed.nonzero().flatten()
        if not truth.valid[i, g] or not len(where):
            assert means[i, g].isnan().all() and covariances[i, g].isnan().all()
            continue
        best = (score[i, g] ** 0.2 * iou[i, g] ** 0.8)[where].argsort(descending=True)[:9]
        points = centers[where[best]].double().numpy()
        np.testing.assert_allclose(means[i, g], points.mean(0))
        expected = np.cov(points.T, bias=True) + RIDGE * np.eye(2)
        np.testing.assert_allclose(covariances[i, g], expected, rtol=1e-5, atol=1e-6)
