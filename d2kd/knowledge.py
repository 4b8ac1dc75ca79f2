"""What a detector shows about one batch, in terms that every method understands.

Shapes: N images, L levels, C channels, H x W cells of a level, K classes, A anchors per cell,
R = all anchors of all levels: level by level, row by row, cell by cell, the anchors of a cell last.
Boxes are x1y1x2y2 in pixels of the padded input, whose origin every network shares.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Knowledge"]


@dataclass
class Knowledge:
    """One detector's maps for one batch. Student and teacher give the same type.

    What no method needs stays empty.

    Attributes:
        padded_size: height and width of the padded input, in pixels.
        features: level name -> (N, C, H, W), what the neck hands to the head.
        logits: level name -> (N, A*K, H, W), class logits of the dense head.
        deltas: level name -> (N, A*D, H, W), its box regression, in the detector's own coding.
        quality: level name -> (N, A, H, W), logits of its centerness, IoU or objectness branch;
            empty for detectors without one.
        cls_tower, box_tower: level name -> (N, C, H, W), output of the first block (after its
            activation) of the head's classification and regression tower.
        boxes: (N, R, 4), decoded from `deltas`; in the student's they carry gradients.
        anchors: (R, 4).
        labelled: what Detectron2's `label_anchors` said of the batch's boxes: classes (R,) and
            boxes (R, 4) of each image, in two lists; None where nobody asked it.
    """

    padded_size: tuple[int, int] = (0, 0)
    features: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    deltas: dict[str, Tensor] = field(default_factory=dict)
    quality: dict[str, Tensor] = field(default_factory=dict)
    cls_tower: dict[str, Tensor] = field(default_factory=dict)
    box_tower: dict[str, Tensor] = field(default_factory=dict)
    boxes: Tensor | None = None
    anchors: Tensor | None = None
    labelled: tuple[list[Tensor], list[Tensor]] | None = None

    @property
    def centers(self) -> Tensor:
        """(R, 2) x, y of the anchors' centres."""
        return (self.anchors[:, :2] + self.anchors[:, 2:]) / 2

    def map_levels(self, change) -> Knowledge:
        """The same with `change(level name, map)` in place of each map."""
        return Knowledge(
            self.padded_size,
            **{
                name: {level: change(level, x) for level, x in getattr(self, name).items()}
                for name in ("features", "logits", "deltas", "quality", "cls_tower", "box_tower")
            },
            labelled=self.labelled,
        )
