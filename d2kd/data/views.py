"""Two views of each image, for a teacher that labels while the student trains."""

from __future__ import annotations

from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch

from ..signature import merge_signature
from .partial import Images, PartialMapper

__all__ = ["TwoViewMapper", "relabel"]


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
    """

    def __init__(self, is_train: bool, *, strong: list, **mapper):
        super().__init__(is_train, **mapper)
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
    names = ", ".join(type(t).__name__ for t in getattr(transform, "transforms", [transform]))
    raise ValueError(
        f"TwoViewMapper.strong: expected augmentations that change pixels only, because both views "
        f"share their boxes, found one that moves points ({names}). Move it to `augmentations`."
    )


def relabel(images: Images) -> Images:
    """Mark images so that a mean teacher replaces all their labels when it begins to label.

    Until then, the student trains on the labels that they have, such as labels made once.
    """
    return [{**image, "relabel": True} for image in images]
