"""Compare the ATSS assignment with the released code and with loops over boxes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_iou

from d2kd.detectors import Locations
from d2kd.detectors.assigners import (
    assign_atss,
    atss_threshold,
    in_box_mask,
    nearest_candidates,
    resolve_conflicts,
)
from d2kd.detectors.losses import iou
from d2kd.targets import Targets

from .scene import instances, located, plain, reference, targets


@pytest.fixture(scope="module")
def scene():
    return located(plain())


def grids(*sizes: tuple[int, int], scale: float = 8) -> Locations:
    """Square anchors at the corners of the cells; the levels have strides 8, 16, ..."""
    anchors, strides = [], []
    for level, (h, w) in enumerate(sizes):
        stride = 8 * 2**level
        y, x = (stride * torch.cartesian_prod(torch.arange(h), torch.arange(w))).float().unbind(1)
        half = scale * stride / 2
        anchors.append(torch.stack([x - half, y - half, x + half, y + half], 1))
        strides.append(torch.full((h * w,), float(stride)))
    return Locations(torch.cat(anchors), torch.cat(strides), tuple(h * w for h, w in sizes))


def padded(*images: list[list[float]]) -> Targets:
    return Targets.from_instances(
        [
            instances(torch.tensor(boxes).reshape(-1, 4), torch.zeros(len(boxes)).long(), (96, 128))
            for boxes in images
        ],
        "cpu",
    )


def atss_by_loop(locations: Locations, boxes, in_image, topk=9):
    """The assignment of one image, computed box by box in float64."""
    anchors, centers = locations.anchors.double(), locations.centers.double()
    matched = torch.full((len(anchors),), -1)
    best = torch.zeros(len(anchors), dtype=torch.float64)
    for k, box in enumerate(boxes.double()):
        chosen, start = [], 0
        for count in locations.counts:
            here = [i for i in range(start, start + count) if in_image[i]]
            distance = {i: (centers[i] - (box[:2] + box[2:]) / 2).norm().item() for i in here}
            chosen += sorted(here, key=distance.get)[:topk]
            start += count
        if not chosen:
            continue
        overlap = box_iou(anchors[chosen], box[None])[:, 0]
        threshold = overlap.mean() + (overlap.std() if len(chosen) > 1 else 0)
        for i, value in zip(chosen, overlap, strict=True):
            x, y = centers[i].tolist()
            side = min(x - box[0], y - box[1], box[2] - x, box[3] - y)
            if value >= threshold and side > 0.01 and (matched[i] < 0 or value > best[i]):
                matched[i], best[i] = k, value
    return matched


def test_candidates_equal_released_code(scene):
    index, valid = nearest_candidates(scene[0], targets(), scene[1])
    for i in range(2):
        expected = reference(f"atss.candidates{i}")
        found = torch.zeros(expected.shape[::-1], dtype=torch.long)
        count = expected.shape[1]
        found.scatter_add_(1, index[i, :count], valid[i, :count].long())
        assert torch.equal(found.T, expected)
        assert not valid[i, count:].any()


def test_thresholds_equal_released_code(scene):
    locations, in_image = scene
    index, valid = nearest_candidates(locations, targets(), in_image)
    found = atss_threshold(iou(locations.anchors[index], targets().boxes[:, :, None]), valid)
    for i in range(2):
        expected = reference(f"atss.thr{i}")
        torch.testing.assert_close(found[i, : len(expected)], expected, rtol=1e-6, atol=0)


def test_assignment_equals_released_code(scene):
    matched = assign_atss(scene[0], targets(), scene[1])
    for i in range(2):
        assert torch.equal(matched[i], reference(f"atss.matched_gt{i}"))


@pytest.mark.parametrize("topk", [1, 4, 9])
@pytest.mark.parametrize("seed", range(3))
def test_assignment_equals_a_loop_over_boxes(topk, seed):
    generator = torch.Generator().manual_seed(seed)
    locations = grids((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))
    images = []
    for count in (14, 5):  # some are small, some extend beyond the image, many overlap
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([140.0, 110.0]) - 20
        side = torch.rand(count, 2, generator=generator) * 80 + 1
        images.append(torch.cat([corner, corner + side], 1).tolist())
    truth = padded(*images)
    in_image = torch.rand(2, len(locations.anchors), generator=generator) < 0.9
    matched = assign_atss(locations, truth, in_image, topk)
    for i, count in enumerate(truth.counts):
        expected = atss_by_loop(locations, truth.boxes[i, :count], in_image[i], topk)
        assert torch.equal(matched[i], expected)
        assert len(expected.unique()) > 3


def test_fewer_than_nine_locations():
    locations = grids((2, 3))
    truth = padded([[1.0, 1.0, 14.0, 13.0], [3.0, 2.0, 22.0, 17.0]])
    in_image = torch.ones(1, 6, dtype=torch.bool)
    expected = atss_by_loop(locations, truth.boxes[0], in_image[0])
    assert torch.equal(assign_atss(locations, truth, in_image)[0], expected)
    assert (expected >= 0).any()


def test_one_location():
    locations = grids((1, 1))
    in_image = torch.ones(1, 1, dtype=torch.bool)
    assert assign_atss(locations, padded([[-4.0, -4.0, 5.0, 6.0]]), in_image).tolist() == [[0]]
    assert assign_atss(locations, padded([[-4.0, -4.0, 5.0, 6.0]]), ~in_image).tolist() == [[-1]]


def test_a_box_outside_the_image_has_no_positives():
    locations = grids((4, 4), (2, 2))
    in_image = torch.ones(1, 20, dtype=torch.bool)
    truth = padded([[-90.0, -90.0, -50.0, -40.0], [500.0, 10.0, 540.0, 40.0]])
    assert (assign_atss(locations, truth, in_image) == -1).all()


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_images_without_boxes(counts):
    locations = grids((4, 4), (2, 2), scale=2)
    truth = padded(*([[3.0, 4.0, 21.0, 25.0]] * count for count in counts))
    matched = assign_atss(locations, truth, torch.ones(2, 20, dtype=torch.bool))
    assert matched.shape == (2, 20)
    assert (matched[0] == -1).all()
    assert (matched[1] >= 0).any() == (counts[1] > 0)


def test_the_first_of_equal_boxes_gets_the_locations():
    locations = grids((4, 4), (2, 2), scale=2)
    matched = assign_atss(
        locations, padded([[3.0, 4.0, 21.0, 25.0]] * 3), torch.ones(1, 20, dtype=torch.bool)
    )
    assert set(matched.unique().tolist()) == {-1, 0}


def test_a_shared_location_goes_to_the_box_with_the_largest_quality():
    index = torch.tensor([[[0, 1], [1, 2], [1, 3]]])
    quality = torch.tensor([[[0.0, 0.3], [0.6, 0.2], [0.9, 0.4]]])
    positive = torch.tensor([[[True, True], [True, True], [False, True]]])
    assert resolve_conflicts(index, quality, positive, 5).tolist() == [[0, 1, 1, 2, -1]]


def test_in_box_mask_needs_a_margin():
    locations = grids((2, 2))  # centers at 0 and 8
    boxes = torch.tensor([[[-1.0, -1.0, 8.005, 9.0], [-1.0, -1.0, 8.02, 9.0]]])
    found = in_box_mask(locations, boxes, torch.arange(4).expand(1, 2, 4))
    assert found.tolist() == [[[True, False, True, False], [True] * 4]]


def test_a_given_quality_replaces_the_iou():
    locations = grids((4, 4))
    requested = []

    def quality(index):
        requested.append(index)
        return (index == 5).float()  # the location at (8, 8)

    in_image = torch.ones(1, 16, dtype=torch.bool)
    matched = assign_atss(locations, padded([[1.0, 2.0, 19.0, 18.0]]), in_image, quality=quality)
    assert requested[0].shape == (1, 1, 9)
    assert (matched[0] >= 0).nonzero().flatten().tolist() == [5]


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor that is created."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.untyped_storage().size() > 1:
                self.found = max(self.found, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_largest_tensor_has_a_float_per_box_and_location_of_a_level():
    locations = grids((24, 32), (12, 16), (6, 8))
    corner = torch.rand(2, 100, 2) * 150
    truth = padded(*torch.cat([corner, corner + 1 + torch.rand(2, 100, 2) * 90], 2).tolist())
    with Largest() as largest:
        assign_atss(locations, truth, torch.ones(2, len(locations.anchors), dtype=torch.bool))
    assert largest.found == 2 * 100 * 24 * 32
