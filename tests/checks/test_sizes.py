import detectron2.data.transforms as T
import pytest
from detectron2.config import LazyCall as L
from detectron2.modeling import SimpleFeaturePyramid
from omegaconf import OmegaConf

from d2kd.checks import check_sizes


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
