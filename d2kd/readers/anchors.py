"""Readers of dense heads whose predictions belong to anchors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..detectors.base import Locations, Predictions
from ..knowledge import Knowledge
from ..targets import Targets, equal_boxes
from .base import Reader

__all__ = ["AnchorReader", "GuidedReader", "PointReader", "check_same_anchors"]


@dataclass(frozen=True)
class AnchorReader(Reader):
    """Reader of a dense head on Detectron2's anchors.

    Attributes:
        anchor_generator: makes the anchors from the list of the head's maps.
        box2box_transform: Detectron2's coding of boxes.
    """

    anchor_generator: Any = None
    box2box_transform: Any = None

    @property
    def provides(self) -> frozenset[str]:
        return super().provides | {"boxes"}

    def anchors(self, knowledge: Knowledge) -> list[Boxes]:
        """Detectron2's anchors on the grids of the logits, one entry for each level."""
        return self.anchor_generator([knowledge.logits[level] for level in self.head_in_features])

    def decode(self, knowledge: Knowledge) -> None:
        knowledge.anchors = Boxes.cat(self.anchors(knowledge)).tensor
        deltas = self.flatten(knowledge.deltas, 4)
        anchors = knowledge.anchors.expand_as(deltas)
        boxes = self.box2box_transform.apply_deltas(deltas.reshape(-1, 4), anchors.reshape(-1, 4))
        knowledge.boxes = boxes.view_as(deltas)

    @contextmanager
    def capture(
        self, needs: Collection[str], on_images: Callable[[Tensor], None] | None = None
    ) -> Iterator[Knowledge]:
        """See `Reader.capture`. It also keeps the result of the detector's `label_anchors`.

        In training the detector compares all anchors with all boxes. `assign` reads the kept
        result, so that this happens once.
        """
        with super().capture(needs, on_images) as knowledge:
            own_label_anchors: Any = getattr(self.detector, "label_anchors", None)

            def label_anchors(anchors: list[Boxes], instances: list[Instances]) -> tuple:
                knowledge.anchor_labels = own_label_anchors(anchors, instances)
                return knowledge.anchor_labels

            if own_label_anchors is not None:
                self.detector.label_anchors = label_anchors
            try:
                yield knowledge
            finally:
                vars(self.detector).pop("label_anchors", None)

    @torch.no_grad()
    def assign(self, knowledge: Knowledge, targets: Targets) -> Tensor:
        label_lists, box_lists = knowledge.anchor_labels or self.detector.label_anchors(
            self.anchors(knowledge), targets.instances()
        )
        labels, boxes = torch.stack(label_lists), torch.stack(box_lists)
        if not targets.valid.shape[1]:
            return torch.full_like(labels, -1)
        # Detectron2 gives the box and the class of each anchor. Look up which of the G boxes it is.
        same = equal_boxes(boxes, targets.boxes)
        same &= targets.valid[:, None] & (labels[..., None] == targets.classes[:, None])
        # Of equal boxes the first one; -1 without any.
        return torch.where(same.any(-1), same.to(torch.uint8).argmax(-1), -1)


@dataclass(frozen=True)
class PointReader(AnchorReader):
    """Reader of the detectors in `d2kd.detectors`, which decode and assign by themselves."""

    def decode(self, knowledge: Knowledge) -> None:
        locations = self._locations(knowledge)
        knowledge.anchors = locations.anchors
        knowledge.boxes = self.detector.decode(locations, self._predictions(knowledge).regression)

    @torch.no_grad()
    def assign(self, knowledge: Knowledge, targets: Targets) -> Tensor:
        locations, inside = self._grid(knowledge, targets)
        return self.detector.assign(locations, self._predictions(knowledge), targets, inside)

    def _grid(self, knowledge: Knowledge, targets: Targets) -> tuple[Locations, Tensor]:
        locations = self._locations(knowledge)
        maps = [knowledge.logits[level] for level in self.head_in_features]
        return locations, self.detector.in_image_mask(locations, targets.sizes, maps)

    def _locations(self, knowledge: Knowledge) -> Locations:
        return self.detector.locations([knowledge.logits[name] for name in self.head_in_features])

    def _predictions(self, knowledge: Knowledge) -> Predictions:
        outputs = (knowledge.logits, knowledge.deltas, knowledge.quality)
        return self.detector.predictions(
            tuple([maps[level] for level in self.head_in_features] for maps in outputs if maps)
        )


@dataclass(frozen=True)
class GuidedReader(PointReader):
    """Reader of a detector (DDOD) that assigns boxes by predictions: its own or a teacher's."""

    @torch.no_grad()
    def assign(self, knowledge: Knowledge, targets: Targets) -> Tensor:
        # Decoded boxes mean the same in every detector; the coding of the regression does not.
        locations, inside = self._grid(knowledge, targets)
        logits = self.flatten(knowledge.logits, self.num_classes)
        return self.detector.match(
            locations, logits, knowledge.boxes, targets, inside, self.detector.cls_alpha
        )

    def guide_assignment(self, teacher: Knowledge) -> None:
        """Let the next training step assign boxes by the teacher's predictions.

        Args:
            teacher: with logits and boxes.
        """
        logits = self.flatten(teacher.logits, self.num_classes)
        self.detector.guide = logits, teacher.boxes


def check_same_anchors(student: Reader, teacher: Reader, caller: str) -> None:
    """Check that both heads predict for the same anchors, in the same order.

    Args:
        caller: the name in front of the message, such as a method's.

    Raises:
        ValueError: the anchors differ; the message says how.
    """

    def kind(reader: Reader) -> str:
        return "anchors" if isinstance(reader, AnchorReader) else "none"

    def strides(reader: Reader) -> list[int]:
        return [reader.shapes[level].stride for level in reader.head_in_features]

    def cell_anchors(reader: Any) -> list:
        return [cell.tolist() for cell in reader.anchor_generator.cell_anchors]

    def cells(reader: Any) -> list:
        # Heads with one anchor in a cell predict for its center, however large the anchor is.
        return [[1] for _ in cell_anchors(reader)] if one_anchor else cell_anchors(reader)

    one_anchor = all(
        len(cell) == 1
        for reader in (student, teacher)
        if isinstance(reader, AnchorReader)
        for cell in cell_anchors(reader)
    )
    checks: tuple[tuple[str, Callable], ...] = (
        ("anchors", kind),
        ("strides of the head", strides),
        ("anchors in a cell", cells),
        ("offset of the anchors", lambda reader: reader.anchor_generator.offset),
    )
    for what, value_of in checks:
        of_student, of_teacher = value_of(student), value_of(teacher)
        if of_student != of_teacher:
            raise ValueError(
                f"{caller}: expected student ({student.name}) and teacher ({teacher.name}) with "
                f"the same {what}, found {of_student} and {of_teacher}. Give both the same, or use "
                f"a feature method such as FGD."
            )
