"""What an audit found, and how it is shown."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from ..data.audit import (
    REFUSED,
    WARNING,
    AuditedSet,
    CocoSource,
    Defect,
    coco_source,
    describe,
    mend_coco,
    use_copy,
)

__all__ = ["Audit", "repair", "repair_if_needed"]

logger = logging.getLogger(__name__)


@dataclass
class Audit:
    """What an audit found.

    Attributes:
        sets: what was audited, with the role of each: "train", "test" or "truth".
        messages: (level, text) of all that was found, in the order in which it was found.
        copies: dataset -> its COCO file, of which a repaired copy is used.
        train: the training set, where it had to be loaded for the audit.
    """

    sets: list[tuple[AuditedSet, str]] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    copies: dict[str, CocoSource] = field(default_factory=dict)
    train: Sequence[Mapping[str, Any]] | None = None

    def add(self, level: str, text: str) -> None:
        if (level, text) not in self.messages:
            self.messages.append((level, text))

    def add_set(self, audited: AuditedSet | None, role: str, standard: bool = True) -> None:
        """Keep what was found in a set, and say it."""
        if audited is None:
            return
        self.sets.append((audited, role))
        self.add_defects(audited, audited.defects, role, standard)

    def add_defects(
        self, audited: AuditedSet, defects: Sequence[Defect], role: str, standard: bool = True
    ) -> None:
        """Say what is wrong with a set."""
        for defect in defects:
            if defect.concerns(role, audited.breaks_loading):
                self.add(*describe(defect, audited.name, role, standard))

    @property
    def refused(self) -> list[str]:
        """Messages about what would make going on wrong."""
        return [text for level, text in self.messages if level == REFUSED]

    def table(self) -> str:
        """The sets, one in a line."""
        rows = [
            (s.name, role, s.images, s.empty, s.boxes, s.crowds,
             "-" if s.classes is None else len(s.classes))
            for s, role in self.sets
        ]  # fmt: skip
        headers = ("data", "for", "images", "without boxes", "boxes", "crowds", "classes")
        return tabulate(rows, headers)

    def log(self) -> None:
        """Write the table and all messages but the refusals to the log."""
        if self.sets:
            logger.info("Audit of the data:\n%s", self.table())
        for level, text in self.messages:
            if level != REFUSED:
                logger.log(logging.WARNING if level == WARNING else logging.INFO, "%s", text)

    def stop_if_refused(self) -> None:
        """
        Raises:
            ValueError: going on would be wrong.
        """
        if len(self.refused) > 1:
            lines = ["expected data and a config that fit each other, found:", *self.refused]
            raise ValueError("\n".join(lines))
        if self.refused:
            raise ValueError(self.refused[0])


def repair_if_needed(audit: Audit, audited: AuditedSet, evaluated: bool) -> None:
    """Use a repaired copy of a set's COCO file, if it cannot be loaded or evaluated as it is.

    Args:
        audit: keeps the name of the set.
        audited: the set.
        evaluated: whether detections in it are evaluated.
    """
    if audited.source is None or audit.refused:
        return
    if audited.breaks_loading or (evaluated and audited.needs_repair):
        audit.copies[audited.name] = audited.source
        repair(audited.name, audited.source, again=audited.lacks_sizes)


def repair(name: str, source: CocoSource, again: bool = False) -> None:
    """Use a repaired copy of a COCO file in this process; see `mend_coco`."""
    copy = mend_coco(source.path, source.image_root, again)
    use_copy(name, copy, source.image_root, reload=coco_source(name) is not None)
