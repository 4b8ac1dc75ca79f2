"""Readers of dense heads whose predictions belong to anchors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..detectors.base import Locations, Predictions
from ..knowledge import Knowledge
from ..targets import Targets, equal_boxes
from .base import Reader

__all__ = ["AnchorReader", "GuidedReader", "PointReader", "check_same_anchors"]


@dataclass(frozen=True)
class AnchorReader(Reader):
    """Reader of a dense head on anchors of Detectron2's kind.

    Attributes:
        anchor_generator: makes the anchors from the list of the head's maps.
        box2box_transform: Detectron2's coding of boxes.
    """

    anchor_generator: nn.Module | None = None
    box2box_transform: object | None = None

    @property
    def offers(self) -> frozenset[str]:
        return super().offers | {"boxes"}

    def anchors(self, seen: Knowledge) -> list[Boxes]:
        """Detectron2's anchors, one entry a level, on the grids of `seen.logits`."""
        return self.anchor_generator([seen.logits[level] for level in self.head_levels])

    def decode(self, seen: Knowledge) -> None:
        seen.anchors = Boxes.cat(self.anchors(seen)).tensor
        deltas = self.flatten(seen.deltas, 4)
        anchors = seen.anchors.expand_as(deltas)
        boxes = self.box2box_transform.apply_deltas(deltas.reshape(-1, 4), anchors.reshape(-1, 4))
        seen.boxes = boxes.view_as(deltas)

    @contextmanager
    def listen(
        self, needs: Collection[str], before: Callable[[Tensor], None] | None = None
    ) -> Iterator[Knowledge]:
        """What the reader of any head does; and remember how the detector labels its anchors, in
        training: it compares all of them with all boxes."""
        with super().listen(needs, before) as seen:
            own = getattr(self.detector, "label_anchors", None)

            def label(anchors: list[Boxes], instances: list[Instances]) -> tuple:
                seen.labelled = own(anchors, instances)
                return seen.labelled

            if own is not None:
                self.detector.label_anchors = label
            try:
                yield seen
            finally:
                vars(self.detector).pop("label_anchors", None)

    @torch.no_grad()
    def assign(self, seen: Knowledge, targets: Targets) -> Tensor:
        labels, boxes = seen.labelled or self.detector.label_anchors(
            self.anchors(seen), targets.instances()
        )
        labels, boxes = torch.stack(labels), torch.stack(boxes)
        if not targets.valid.shape[1]:
            return torch.full_like(labels, -1)
        # Detectron2 says which box and class an anchor got; which of the G boxes is that?
        same = equal_boxes(boxes, targets.boxes)
        same &= targets.valid[:, None] & (labels[..., None] == targets.classes[:, None])
        # The first of the boxes that are the same; without any, -1.
        return torch.where(same.any(-1), same.to(torch.uint8).argmax(-1), -1)


@dataclass(frozen=True)
class PointReader(AnchorReader):
    """Reader of `d2kd.detectors`, which decode and assign by themselves."""

    @property
    def padding(self) -> int:
        return self.detector.padding

    def decode(self, seen: Knowledge) -> None:
        locations = self._locations(seen)
        seen.anchors = locations.anchors
        seen.boxes = self.detector.decode(locations, self._predictions(seen).regression)

    @torch.no_grad()
    def assign(self, seen: Knowledge, targets: Targets) -> Tensor:
        locations, inside = self._grid(seen, targets)
        return self.detector.assign(locations, self._predictions(seen), targets, inside)

    def _grid(self, seen: Knowledge, targets: Targets) -> tuple[Locations, Tensor]:
        locations = self._locations(seen)
        maps = [seen.logits[level] for level in self.head_levels]
        return locations, self.detector.inside(locations, targets.sizes, maps)

    def _locations(self, seen: Knowledge) -> Locations:
        return self.detector.locations([seen.logits[level] for level in self.head_levels])

    def _predictions(self, seen: Knowledge) -> Predictions:
        outputs = (seen.logits, seen.deltas, seen.quality)
        return self.detector.predictions(
            tuple([maps[level] for level in self.head_levels] for maps in outputs if maps)
        )


@dataclass(frozen=True)
class GuidedReader(PointReader):
    """Reader of a detector that assigns boxes by logits and boxes, its own or a guide's."""

    @torch.no_grad()
    def assign(self, seen: Knowledge, targets: Targets) -> Tensor:
        # By the decoded boxes, which mean the same in every detector; its coding does not.
        locations, inside = self._grid(seen, targets)
        logits = self.flatten(seen.logits, self.num_classes)
        return self.detector.match(
            locations, logits, seen.boxes, targets, inside, self.detector.cls_alpha
        )

    def guide(self, teacher: Knowledge) -> None:
        """Let the next training step assign boxes by these predictions; they have boxes."""
        logits = self.flatten(teacher.logits, self.num_classes)
        self.detector.guide = logits, teacher.boxes


def check_same_anchors(student: Reader, teacher: Reader, who: str) -> None:
    """Check that both heads predict for the same anchors, in the same order.

    Raises:
        ValueError: they do not; the message says what differs.
    """
    # Heads with one anchor in a cell predict for its centre, however large the anchor is.
    cells = [
        [len(cell) for cell in r.anchor_generator.cell_anchors]
        if isinstance(r, AnchorReader)
        else []
        for r in (student, teacher)
    ]
    one_anchor = {n for counts in cells for n in counts} == {1}
    for what, value in (
        ("anchors", lambda reader: "anchors" if isinstance(reader, AnchorReader) else "none"),
        ("strides of the head", lambda r: [r.shapes[level].stride for level in r.head_levels]),
        (
            "anchors in a cell",
            lambda r: [
                [1] if one_anchor else cell.tolist() for cell in r.anchor_generator.cell_anchors
            ],
        ),
        ("offset of the anchors", lambda r: r.anchor_generator.offset),
    ):
        found = value(student), value(teacher)
        if found[0] != found[1]:
            raise ValueError(
                f"{who}: expected student ({student.name}) and teacher ({teacher.name}) with the "
                f"same {what}, found {found[0]} and {found[1]}. Give both the same, or use a "
                f"feature method such as FGD."
            )
