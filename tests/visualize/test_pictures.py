"""The objects of a picture, as the methods get them."""

import numpy as np
import torch

from d2kd.matching import GroundTruth
from d2kd.visualize import Picture, PseudoLabels, spread
from tests.test_matching import found

PIXELS, RESIZED = np.zeros((50, 100, 3)), np.zeros((100, 300, 3))


def test_true_boxes_follow_the_resized_image():
    truth = GroundTruth(np.ones((1, 4)), np.zeros(1, dtype=int))
    picture = Picture(PIXELS, {}, RESIZED, truth)
    np.testing.assert_array_equal(picture.objects.boxes, [[3, 2, 3, 2]])
    assert Picture(PIXELS, {}, RESIZED).objects is None


def test_pseudo_labels_are_targets_with_their_regions_to_ignore():
    labels = PseudoLabels(found((1, 1, 5, 5, 2, 0.9)), np.array([[10.0, 10, 20, 20]]))
    picture = Picture(PIXELS, {"annotated_classes": [0, 2]}, RESIZED, labels=labels)
    targets = picture.targets("cpu", 3)
    assert targets.boxes.tolist() == [[[3, 2, 15, 10]]] and targets.classes.tolist() == [[2]]
    assert targets.ignored.tolist() == [[[30, 20, 60, 40]]]
    assert targets.annotated.tolist() == [[True, False, True]]
    assert torch.equal(targets.sizes, torch.tensor([[100, 300]]))


def test_a_picture_without_objects_has_empty_targets():
    picture = Picture(PIXELS, {}, RESIZED, GroundTruth(np.zeros((0, 4)), np.zeros(0, dtype=int)))
    assert picture.targets("cpu", 3).boxes.shape == (1, 0, 4)


def test_images_are_spread_over_a_set_that_is_ordered_by_class():
    assert spread("aaabbbccc", 3) == ["a", "b", "c"]
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread("ab", 5) == ["a", "b"] and spread("", 5) == []
