import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T

from d2kd.data.augment import RandomBlur, RandomErase

IMAGE = np.random.RandomState(0).randint(0, 256, (40, 60, 3)).astype(np.uint8)


def apply(augmentation, image=IMAGE) -> np.ndarray:
    np.random.seed(0)
    augmented = T.AugInput(image.copy(), boxes=np.array([[1.0, 2.0, 30.0, 20.0]]))
    T.AugmentationList([augmentation])(augmented)
    assert augmented.boxes.tolist() == [[1.0, 2.0, 30.0, 20.0]]
    return augmented.image


def test_blur_equals_opencv():
    found = apply(RandomBlur(1.5, 1.5))
    np.testing.assert_array_equal(found, cv2.GaussianBlur(IMAGE, (0, 0), 1.5))


def test_erased_rectangle_has_the_given_area():
    changed = (apply(RandomErase(1, 0.1, 0.1, ratio=2.0)) != IMAGE).any(-1)
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert box.mean() > 0.95  # a pixel may have had the new color before
    assert box.size == pytest.approx(0.1 * 40 * 60, rel=0.1)
    assert 0.45 < box.shape[0] / box.shape[1] < 2.2


def test_a_rectangle_may_fill_the_image():
    assert np.ptp(apply(RandomErase(1, 1.0, 1.0, ratio=1.5)).reshape(-1, 3), 0).max() > 0
    whole = apply(RandomErase(1, 1.0, 1.0, ratio=1.0), IMAGE[:40, :40])
    assert np.ptp(whole.reshape(-1, 3), 0).max() == 0


def test_nothing_is_erased_without_rectangles():
    np.testing.assert_array_equal(apply(RandomErase(0)), IMAGE)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomBlur(0.0, 1.0),
        lambda: RandomBlur(2.0, 1.0),
        lambda: RandomErase(-1),
        lambda: RandomErase(1, 0.5, 0.2),
        lambda: RandomErase(1, ratio=0.5),
    ],
)
def test_impossible_ranges_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
