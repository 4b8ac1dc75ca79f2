"""Two views of each image, for a teacher that labels while the student trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from omegaconf import DictConfig

from ..lazy import resolve_target
from ..signature import merge_signature
from .partial import Images, PartialMapper, check_images

__all__ = ["TwoViewMapper", "check_views", "relabel"]

# What moves points, or can with some probability. Older releases of Detectron2 lack some of these.
_GEOMETRIC = tuple(
    getattr(T, name)
    for name in (
        "CropTransform", "ExtentTransform", "FixedSizeCrop", "GridSampleTransform",
        "HFlipTransform", "MinIoURandomCrop", "PadTransform", "RandomCrop",
        "RandomCrop_CategoryAreaConstraint", "RandomExtent", "RandomFlip", "RandomResize",
        "RandomRotation", "Resize", "ResizeScale", "ResizeShortestEdge", "ResizeTransform",
        "RotationTransform", "ScaleTransform", "VFlipTransform",
    )
    if hasattr(T, name)
)  # fmt: skip


@merge_signature
class TwoViewMapper(PartialMapper):
    """`PartialMapper` that gives a weak and a strong view of each image.

    Both views have the same boxes. `augmentations` resize, flip and crop; their result is the weak
    view, from which the teacher of `d2kd.pseudo.MeanTeacher` labels. The augmentations in `strong`
    then change its pixels only. Their result is the strong view, on which the student trains.

    In addition to `PartialMapper`, its output has "weak_image": (3, H, W) uint8, of the same size
    and channel order as "image".

    Args:
        is_train: see `DatasetMapper`.
        strong: augmentations that change no coordinates, such as colors, blur and erasing.
        mapper: see `PartialMapper`.

    Raises:
        ValueError: one of Detectron2's augmentations in `strong` moves points. Of other
            augmentations, this is known only when one of them does.
    """

    def __init__(self, is_train: bool, *, strong: list, **mapper):
        super().__init__(is_train, **mapper)
        moving = [type(x).__name__ for x in _all_in(strong) if isinstance(x, _GEOMETRIC)]
        if moving:
            raise _moves_points(moving)
        self.strong = T.AugmentationList(strong)

    def _transform_annotations(self, dataset_dict, transforms, image_shape) -> None:
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        weak = dataset_dict["image"]
        view = T.AugInput(np.ascontiguousarray(weak.permute(1, 2, 0).numpy()))
        _check_coordinates(self.strong(view), image_shape, view.image.shape[:2])
        dataset_dict["weak_image"] = weak
        dataset_dict["image"] = torch.as_tensor(
            np.ascontiguousarray(view.image.transpose(2, 0, 1)), dtype=weak.dtype
        )


def _check_coordinates(transform: Any, before: tuple[int, int], after: tuple[int, int]) -> None:
    height, width = before
    points = np.array([[0, 0], [width, height], [1, 2]], dtype=float)
    if before == after and np.allclose(transform.apply_coords(points.copy()), points):
        return
    raise _moves_points(type(t).__name__ for t in getattr(transform, "transforms", [transform]))


def _all_in(augmentations: Iterable[Any]) -> Iterator[Any]:
    """Augmentations and transforms, and those inside of a list or of `RandomApply`."""
    for x in augmentations:
        yield x
        inner = [getattr(x, name) for name in ("aug", "tfm") if hasattr(x, name)]
        yield from _all_in([*inner, *getattr(x, "augs", ()), *getattr(x, "transforms", ())])


def _moves_points(names: Iterable[str]) -> ValueError:
    return ValueError(
        f"TwoViewMapper.strong: expected augmentations that change pixels only, because both views "
        f"share their boxes, found one that moves points ({', '.join(names)}). Move it to "
        f"`augmentations`."
    )


def check_views(mapper: Any, dataset: Any) -> None:
    """Check that a training set has what a `TwoViewMapper` needs.

    Detectron2's mapper transforms the annotations only of images that have the key, and the views
    are made there.

    Args:
        mapper: the node of the config.
        dataset: only a list, of dicts of Detectron2's standard format, is looked at.

    Raises:
        ValueError: an image has no "annotations".
    """
    if not isinstance(mapper, DictConfig) or "_target_" not in mapper:
        return
    target = resolve_target(mapper)
    if not (isinstance(target, type) and issubclass(target, TwoViewMapper)):
        return
    lacking = [x for x in dataset if "annotations" not in x] if isinstance(dataset, list) else []
    if lacking:
        raise ValueError(
            f"dataloader.train.dataset: expected the key 'annotations' in each image, because "
            f"{target.__name__} needs it, found none in {len(lacking)} of {len(dataset)} images, "
            f"such as {lacking[0].get('file_name')}. Load images without labels with "
            f"d2kd.data.load_unlabeled; a labeled image without boxes has an empty list."
        )


def relabel(images: Images) -> Images:
    """Mark images so that a mean teacher replaces all their labels when it begins to label.

    Until then, the student trains on the labels that they have, such as labels made once.

    Raises:
        ValueError: `images` is the name of a dataset and not its images.
    """
    check_images("relabel.images", images)
    return [{**image, "relabel": True} for image in images]
