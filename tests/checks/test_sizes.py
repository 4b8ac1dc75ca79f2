import detectron2.data.transforms as T
import pytest
from detectron2.config import LazyCall as L
from detectron2.modeling import SimpleFeaturePyramid
from omegaconf import OmegaConf

from d2kd import Distiller, FeatureTeacher, Teacher
from d2kd.checks import check_sizes
from d2kd.data import TwoSizeMapper


def config(augmentations, section="train", square=64, distiller=False):
    model = {"backbone": L(SimpleFeaturePyramid)(square_pad=square)}
    mapper = {"augmentations": augmentations}
    return OmegaConf.create(
        {
            "model": {"student": model} if distiller else model,
            "dataloader": {section: {"mapper": mapper}},
        },
        flags={"allow_objects": True},
    )


@pytest.mark.parametrize("section", ["train", "test"])
@pytest.mark.parametrize("distiller", [True, False])
def test_images_larger_than_the_square_are_refused(section, distiller):
    resize = L(T.ResizeShortestEdge)(short_edge_length=48, max_size=80)
    message = rf"dataloader.{section}.mapper.augmentations: expected images of at most 64 .* 80"
    with pytest.raises(ValueError, match=message):
        check_sizes(config([resize, L(T.RandomFlip)()], section, distiller=distiller))


@pytest.mark.parametrize(
    "augmentations",
    [
        [],
        [L(T.ResizeShortestEdge)(short_edge_length=48, max_size=64)],
        [
            L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=128, target_width=128),
            L(T.FixedSizeCrop)(crop_size=(64, 64)),
        ],
        [
            L(T.ResizeShortestEdge)(short_edge_length=48, max_size=80),
            L(T.RandomCrop)(crop_type="absolute", crop_size=(64, 64)),
        ],
    ],
)
def test_sizes_that_fit_or_are_unknown_pass(augmentations):
    check_sizes(config(augmentations))


def test_a_detector_without_a_square_takes_any_size():
    resize = L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)
    check_sizes(config([resize], square=0))


def two_sizes(max_size=64, square=64):
    """A config whose student sees images of up to `max_size` pixels, the teacher larger ones."""
    cfg = config([L(T.ResizeShortestEdge)(short_edge_length=96, max_size=128)], square=square)
    resize = L(T.ResizeShortestEdge)(short_edge_length=48, max_size=max_size)
    cfg.dataloader.train.mapper = L(TwoSizeMapper)(
        is_train=True,
        augmentations=cfg.dataloader.train.mapper.augmentations,
        student_resize=[resize],
        image_format="BGR",
    )
    return cfg


def test_of_two_sizes_the_students_must_fit_into_its_square():
    check_sizes(two_sizes())
    with pytest.raises(ValueError, match=r"mapper\.student_resize: expected .* at most 64 .* 80"):
        check_sizes(two_sizes(max_size=80))


def test_a_mapper_of_two_sizes_needs_a_teacher_that_takes_its_own():
    cfg = two_sizes()
    cfg.model = L(Distiller)(student=cfg.model, teacher=L(Teacher)(model="a.py", weights=None))
    with pytest.raises(ValueError, match=r"model\.teacher\.image_size: expected the size that the"):
        check_sizes(cfg)
    cfg.model.teacher.image_size = [96, 128]
    check_sizes(cfg)


def test_a_teacher_of_features_is_not_told_to_set_a_field_that_it_does_not_have():
    cfg = two_sizes()
    teacher = L(FeatureTeacher)(backbone="timm/resnet18", weights=None)
    cfg.model = L(Distiller)(student=cfg.model, teacher=teacher)
    message = r"train\.mapper: expected a mapper .* FeatureTeacher, .* found TwoSizeMapper"
    with pytest.raises(ValueError, match=message):
        check_sizes(cfg)
