"""Give student and teacher the same view of an image, each at its own size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T

from ..signature import merge_signature
from .partial import PartialMapper

__all__ = ["TwoSizeMapper"]


@merge_signature
class TwoSizeMapper(PartialMapper):
    """A `PartialMapper` that also gives the pixels of the teacher's own size.

    An image is read and augmented once, at the teacher's size: `augmentations` hold the teacher's
    resizing, flips, crops and colors. This is the teacher's view. The student's view is the same
    picture, resized by `student_resize`. So both networks see the same flips, crops and colors.

    In addition to `PartialMapper`, its output has "teacher_image", (3, H, W), raw pixels of the
    teacher's view in the channel order of "image". All labels are in pixels of the student's view.

    Args:
        is_train: see `DatasetMapper`.
        student_resize: Detectron2's augmentations that resize, such as
            ``[L(T.ResizeShortestEdge)(short_edge_length=480, max_size=800)]``.
        mapper: see `PartialMapper`.

    Raises:
        ValueError: `student_resize` is empty, or has an augmentation that does not only resize.
    """

    augmentations: T.AugmentationList

    def __init__(self, is_train: bool, *, student_resize: Sequence[T.Augmentation], **mapper):
        super().__init__(is_train, **mapper)
        kinds = (T.Resize, T.ResizeShortestEdge, T.ResizeScale)
        others = [type(x).__name__ for x in student_resize if not isinstance(x, kinds)]
        if others or not student_resize:
            raise ValueError(
                f"TwoSizeMapper.student_resize: expected one or more of "
                f"{', '.join(kind.__name__ for kind in kinds)}, found "
                f"{', '.join(others) or 'none'}. Flips, crops and colors belong into "
                f"augmentations, so that both networks see them."
            )
        self._teacher_view = _Keep()
        self.augmentations = T.AugmentationList(
            [self.augmentations, self._teacher_view, *student_resize]
        )

    def __call__(self, dataset_dict: dict) -> dict:
        output = super().__call__(dataset_dict)
        pixels = np.ascontiguousarray(self._teacher_view.take().transpose(2, 0, 1))
        output["teacher_image"] = torch.as_tensor(pixels)
        return output


class _Keep(T.Augmentation):
    """Keeps the image as it is at this place in a list of augmentations."""

    def __init__(self) -> None:
        super().__init__()
        self._image: np.ndarray | None = None

    def get_transform(self, image: np.ndarray) -> T.Transform:
        self._image = image
        return T.NoOpTransform()

    def take(self) -> np.ndarray:
        image, self._image = self._image, None
        assert image is not None
        return image
