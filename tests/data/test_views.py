import detectron2.data.transforms as T
import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.structures import BoxMode
from PIL import Image

from d2kd.data import PartialMapper, RandomBlur, RandomErase, TwoViewMapper, relabel
from d2kd.data.named_errors import NamedErrors
from d2kd.data.views import check_views


@pytest.fixture
def image(tmp_path) -> dict:
    pixels = np.zeros((8, 6, 3), np.uint8)
    pixels[:, :3] = 100
    Image.fromarray(pixels).save(tmp_path / "a.png")
    box = dict(bbox=[0, 1, 3, 4], bbox_mode=BoxMode.XYXY_ABS, category_id=0)
    return dict(file_name=str(tmp_path / "a.png"), height=8, width=6, annotations=[box])


def mapper(strong: list) -> TwoViewMapper:
    flip = [T.RandomFlip(prob=1.0)]
    return TwoViewMapper(is_train=True, augmentations=flip, strong=strong, image_format="RGB")


def test_views_share_the_geometry_and_differ_in_their_pixels(image):
    x = mapper([T.RandomBrightness(2.0, 2.0)])(image)
    weak, strong = x["weak_image"], x["image"]
    assert weak.shape == strong.shape == (3, 8, 6)
    assert (weak[:, :, :3] == 0).all() and (weak[:, :, 3:] == 100).all()  # flipped
    assert (strong == 2 * weak).all() and strong.dtype == weak.dtype
    # The box is flipped in an image that is 6 pixels wide.
    assert x["instances"].gt_boxes.tensor.tolist() == [[3, 1, 6, 4]]


@pytest.mark.parametrize(
    "strong",
    [
        T.RandomFlip(prob=0.05),
        T.Resize((4, 3)),
        T.HFlipTransform(6),
        T.RandomApply(T.RandomRotation([90]), prob=0.05),
        T.RandomApply(T.HFlipTransform(6), prob=0.05),
        T.AugmentationList([T.RandomCrop("relative", (0.5, 0.5))]),
        T.TransformList([T.HFlipTransform(6)]),
    ],
)
def test_strong_augmentation_that_moves_points_is_refused_when_it_is_built(strong):
    with pytest.raises(ValueError, match=r"TwoViewMapper.strong: .* change pixels only"):
        mapper([T.RandomContrast(0.5, 1.5), strong])


class Mirror(T.Augmentation):
    def get_transform(self, image):
        return T.HFlipTransform(image.shape[1])


def test_augmentation_of_a_user_that_moves_points_is_refused_when_it_does(image):
    with pytest.raises(ValueError, match=r"change pixels only, .* \(HFlipTransform\)"):
        NamedErrors(mapper([Mirror()]))(image)


def test_augmentations_that_change_pixels_pass():
    pixels = [RandomBlur(), RandomErase(), T.RandomApply(T.RandomBrightness(0.5, 2))]
    mapper([*pixels, T.ColorTransform(np.sqrt), T.NoOpTransform()])


def test_each_image_needs_annotations():
    node = L(TwoViewMapper)(is_train=True, augmentations=[], strong=[], image_format="RGB")
    records = [dict(file_name="a.png", annotations=[]), dict(file_name="b.png")]
    check_views(node, records[:1])
    with pytest.raises(ValueError, match=r"'annotations' .* found none in 1 of 2 .* b.png\. Load"):
        check_views(node, records)
    node._target_ = PartialMapper
    check_views(node, records)


def test_relabel_marks_images_and_leaves_the_given_ones():
    images = [dict(image_id=1)]
    assert relabel(images) == [dict(image_id=1, relabel=True)] and images == [dict(image_id=1)]
