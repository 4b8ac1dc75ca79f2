"""What a detector shows about one batch, in a form that every method understands.

Shapes: N images, L levels, C channels, H x W cells of a level, K classes, A anchors per cell,
R = all anchors of all levels: level by level, row by row, cell by cell, and the anchors of a cell
last. Boxes are x1y1x2y2 in pixels of the padded input, whose origin every network shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Knowledge"]

Maps = dict[str, Tensor]


@dataclass
class Knowledge:
    """The maps of one detector for one batch. Student and teacher give the same type.

    Fields that no method asked for stay empty.

    Attributes:
        padded_size: height and width of the padded input, in pixels.
        features: level name -> (N, C, H, W), the pyramid maps that the neck hands to the head.
        logits: level name -> (N, A*K, H, W), class logits of the dense head.
        deltas: level name -> (N, A*D, H, W), box regression of the dense head, in the detector's
            own coding with D numbers per anchor.
        quality: level name -> (N, A, H, W), logits of the head's centerness, IoU or objectness
            branch; empty for detectors without one.
        taps: tap name -> level name -> (N, C, H, W), outputs of modules inside the head. For
            example, `taps["cls_tower.2"]["p3"]` is the output of the second block of the
            classification tower at level p3; see `d2kd.readers.Reader.taps`.
        boxes: (N, R, 4), decoded from `deltas`. The student's boxes carry gradients. None without
            "boxes".
        anchors: (R, 4); None without "boxes".
        anchor_labels: what Detectron2's `label_anchors` returned for this batch: classes (R,) and
            boxes (R, 4) of each image, in two lists. None if the detector did not call it.
        run_head_from: runs the rest of this detector's head on given tower maps; see
            `d2kd.readers.Reader.run_head_from`. None for a detector without towers.
    """

    padded_size: tuple[int, int] = (0, 0)
    features: Maps = field(default_factory=dict)
    logits: Maps = field(default_factory=dict)
    deltas: Maps = field(default_factory=dict)
    quality: Maps = field(default_factory=dict)
    taps: dict[str, Maps] = field(default_factory=dict)
    # Typed as tensors for the methods: each of them gets the boxes that it needs.
    boxes: Tensor = None  # type: ignore[assignment]
    anchors: Tensor = None  # type: ignore[assignment]
    anchor_labels: tuple[list[Tensor], list[Tensor]] | None = None
    run_head_from: Callable[..., Knowledge] = field(  # type: ignore[assignment]
        default=None, repr=False, compare=False
    )

    @property
    def centers(self) -> Tensor:
        """(R, 2), x and y of the anchors' centers in pixels.

        Raises:
            ValueError: there are no anchors, because "boxes" was not asked for.
        """
        if self.anchors is None:
            raise ValueError('Knowledge.centers: expected anchors, found none. Ask for "boxes".')
        return (self.anchors[:, :2] + self.anchors[:, 2:]) / 2

    def maps(self, name: str) -> Maps:
        """Level name -> map, of "features", "logits", "deltas", "quality" or of a tap.

        Empty if no method asked for it.
        """
        if name in ("features", "logits", "deltas", "quality"):
            return getattr(self, name)
        return self.taps.get(name, {})

    def map_levels(self, change: Callable[[str, Tensor], Tensor]) -> Knowledge:
        """The same knowledge with `change(level name, map)` in place of each map.

        Boxes and anchors are left out, because they belong to the unchanged maps.
        """

        def changed(maps: Maps) -> Maps:
            return {level: change(level, x) for level, x in maps.items()}

        return Knowledge(
            self.padded_size,
            features=changed(self.features),
            logits=changed(self.logits),
            deltas=changed(self.deltas),
            quality=changed(self.quality),
            taps={name: changed(maps) for name, maps in self.taps.items()},
            anchor_labels=self.anchor_labels,
            run_head_from=self.run_head_from,
        )
