import cv2
import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode

from d2kd.data import TwoSizeMapper


@pytest.fixture
def image(tmp_path) -> dict:
    """A picture of noise, 60 x 80, with a box."""
    pixels = np.random.RandomState(0).randint(0, 256, (60, 80, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    box = dict(bbox=[8.0, 12.0, 40.0, 36.0], bbox_mode=BoxMode.XYXY_ABS, category_id=0)
    return dict(
        file_name=str(tmp_path / "a.png"), image_id=1, height=60, width=80, annotations=[box]
    )


def mapper(augmentations=(), student_resize=None, is_train=True):
    return TwoSizeMapper(
        is_train,
        augmentations=list(augmentations),
        image_format="BGR",
        student_resize=student_resize or [T.Resize((30, 40))],
    )


def test_the_teacher_sees_the_file_and_the_student_a_smaller_copy(image):
    output = mapper()(image)
    pixels = cv2.imread(image["file_name"])
    np.testing.assert_array_equal(output["teacher_image"].permute(1, 2, 0), pixels)
    expected = T.ResizeTransform(60, 80, 30, 40).apply_image(pixels)
    np.testing.assert_array_equal(output["image"].permute(1, 2, 0), expected)
    boxes = output["instances"].gt_boxes.tensor
    torch.testing.assert_close(boxes, torch.tensor([[4.0, 6.0, 20.0, 18.0]]))


def test_both_see_the_same_flip_crop_and_colors(image):
    augmentations = [
        T.ResizeShortestEdge(120, 1000),
        T.RandomFlip(1.0),
        T.RandomCrop("relative", (0.5, 0.5)),
        T.RandomBrightness(0.5, 0.5),
    ]
    np.random.seed(3)
    output = mapper(augmentations, [T.ResizeShortestEdge(30, 1000)])(image)
    np.random.seed(3)  # Detectron2's own mapper at the teacher's size
    plain = DatasetMapper(is_train=True, augmentations=augmentations, image_format="BGR")(image)
    assert torch.equal(output["teacher_image"], plain["image"])
    assert output["image"].shape == (3, 30, 40)
    shown = T.ResizeTransform(60, 80, 30, 40).apply_image(plain["image"].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(output["image"].permute(1, 2, 0), shown)
    boxes = (x["instances"].gt_boxes.tensor for x in (output, plain))
    torch.testing.assert_close(next(boxes), next(boxes) / 2)


def test_it_works_in_evaluation(image):
    output = mapper(is_train=False)(image)
    assert output["image"].shape == (3, 30, 40)
    assert output["teacher_image"].shape == (3, 60, 80)
    assert "instances" not in output and (output["height"], output["width"]) == (60, 80)


@pytest.mark.parametrize("resize, found", [([T.RandomFlip()], "RandomFlip"), ((), "none")])
def test_other_augmentations_of_the_student_alone_are_refused(resize, found):
    with pytest.raises(ValueError, match=rf"student_resize: expected .* found {found}"):
        TwoSizeMapper(True, augmentations=[], image_format="BGR", student_resize=resize)
