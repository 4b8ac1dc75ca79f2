"""What the parts of a dense detector pass to each other: locations and predictions.

Shapes: N images, K classes, R locations of all levels. Locations are ordered level by level, then
row by row. Boxes are x1y1x2y2 in pixels of the padded input.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Locations", "Predictions"]


class Locations(NamedTuple):
    """The places for which the head makes predictions.

    Attributes:
        anchors: (R, 4) in pixels, one anchor per location.
        strides: (R,) in pixels, the stride of the level that a location belongs to.
        counts: number of locations of each level; their sum is R.
    """

    anchors: Tensor
    strides: Tensor
    counts: tuple[int, ...]

    @property
    def centers(self) -> Tensor:
        """(R, 2) x, y of the anchors' centers, in pixels."""
        return (self.anchors[:, :2] + self.anchors[:, 2:]) / 2


class Predictions(NamedTuple):
    """The outputs of the head, flattened over levels, in float32.

    Attributes:
        logits: (N, R, K) class logits.
        regression: (N, R, D) box regression in the detector's own coding, see
            `PointDetector.decode`.
        quality: (N, R) logits of the quality branch, which predicts an IoU, a centerness or an
            objectness. None if the head has no such branch.
    """

    logits: Tensor
    regression: Tensor
    quality: Tensor | None

    def require_quality(self) -> Tensor:
        """Return `quality`.

        Raises:
            ValueError: the head has no quality branch.
        """
        if self.quality is None:
            raise ValueError(
                "expected a head with a quality branch, found one that returns only class logits "
                "and box regression. Let the head return quality logits (N, 1, H, W) as well."
            )
        return self.quality
