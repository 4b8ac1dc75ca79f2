"""The kinds of defects that the audit knows: how bad each is, and what is done about it.

A defect is counted once for a set of data. Its kind says whether going on would be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..layout import missing_file_hint

__all__ = ["KINDS", "NOTE", "REFUSED", "WARNING", "Defect", "Kind", "describe"]

NOTE, WARNING, REFUSED = "note", "warning", "refused"
EVALUATED = ("annotation_ids", "no_area", "no_iscrowd", "no_info")
"""Kinds that matter in evaluation only, unless the COCO file cannot be loaded at all."""


@dataclass(frozen=True)
class Defect:
    """What was counted in one set.

    Attributes:
        kind: a key of `KINDS`.
        count: how many images, boxes or entries have the defect, at least 1.
        total: out of how many.
        example: one of them, for the message.
    """

    kind: str
    count: int
    total: int
    example: str

    def concerns(self, role: str, breaks_loading: bool) -> bool:
        """Whether the defect matters for a set of this role.

        Args:
            role: see `describe`.
            breaks_loading: whether Detectron2 cannot load the set's COCO file as it is.
        """
        if self.kind == "tested_twice":
            return role == "test"  # training may repeat images
        if self.kind in EVALUATED:
            return role == "test" or breaks_loading
        return True


class Kind(NamedTuple):
    """One kind of defect.

    Attributes:
        level: NOTE, if nothing is lost; WARNING; or REFUSED, if going on would be wrong.
        unit: what is counted, in the plural.
        found: what is wrong with them, a phrase with a verb.
        expected: what was expected, for the error of a REFUSED kind.
        done: what is done about it, or how to fix it. One text; or one for each role of the set,
            "train", "test" or "truth" (the report of `d2kd label`).
        reading: whether the defect concerns only Detectron2's own mapper. With another mapper,
            which may read images in its own way, a REFUSED kind is a WARNING.
    """

    level: str
    unit: str
    found: str
    expected: str
    done: str | Mapping[str, str]
    reading: bool = False


_LOST = {
    "train": "They are left out of training",
    "test": "No detection can match them, which lowers the AP",
    "truth": "No label can match them, which lowers the recall in the report",
}
_RENUMBERED = "They are numbered again in a copy of the file, which is used instead"
_FILLED = "They are filled in, in a copy of the file, which is used instead"

KINDS: dict[str, Kind] = {
    # The table itself
    "image_entries": Kind(
        REFUSED, "images", "lack an id or a file_name", "id and file_name for each image",
        "Add them to the JSON file",
    ),
    "image_types": Kind(
        REFUSED, "images", "have an id that is no number or text, or a file_name that is no text",
        "a number or a text as id and a text as file_name of each image", "Correct the JSON file",
    ),
    "image_ids": Kind(
        REFUSED, "images", "have the id of another image", "a different id for each image",
        "The boxes of one image would land on the other. Give each image its own id, and each "
        "annotation the image_id of its image",
    ),
    "image_twice": Kind(
        NOTE, "images", "are listed twice, with the same id and file", "", "They count once"
    ),
    "tested_twice": Kind(
        REFUSED, "images", "have the id of another image", "a different id for each test image",
        "The evaluator would count the detections of both for one image",
    ),
    "category_entries": Kind(
        REFUSED, "categories", "lack an id or a name", "id and name for each category",
        "Add them to the JSON file",
    ),
    "category_types": Kind(
        REFUSED, "categories", "have an id of another type",
        "a whole number or a text as id of each category",
        "Write whole numbers (1 in place of 1.0), in categories and annotations",
    ),
    "category_ids": Kind(
        REFUSED, "categories", "have the id of another category, or an id of another type",
        "a different id for each category, all of one type", "Renumber the categories",
    ),
    "annotation_entries": Kind(
        REFUSED, "annotations", "lack an image_id or a category_id",
        "image_id and category_id for each annotation", "Add them to the JSON file",
    ),
    "annotation_types": Kind(
        REFUSED, "annotations", "have an image_id or a category_id of another type",
        "numbers or texts as image_id and category_id", "Correct the JSON file",
    ),
    "strangers": Kind(
        WARNING, "annotations", "are of images that the file does not list", "",
        "They are left out",
    ),
    "all_strangers": Kind(
        REFUSED, "annotations", "are of images that the file does not list",
        "annotations of the listed images",
        'No image would have a box. Compare the types of the ids, too: "1" is not 1',
    ),
    "unknown_category": Kind(
        REFUSED, "annotations", "are of a category that the file does not list",
        "annotations of the listed categories", "Add the category, or remove these annotations",
    ),
    "ignore": Kind(
        REFUSED, "annotations", "have `ignore` set, which Detectron2 does not support",
        "annotations without `ignore`", "Set iscrowd=1 instead, or remove them",
    ),
    "annotation_ids": Kind(
        NOTE, "annotations", "have an id that is missing, repeated, not a whole number, or below 1",
        "", _RENUMBERED,
    ),
    "no_area": Kind(NOTE, "annotations", "have no area that is a finite number >= 0", "", _FILLED),
    "no_iscrowd": Kind(NOTE, "annotations", "have no number as iscrowd", "", _FILLED),
    "no_info": Kind(NOTE, "files", "have no `info`", "", _FILLED),
    "no_size": Kind(
        NOTE, "images", "have no width or height in the JSON file", "",
        "They are read from the images, into a copy of the file, which is used instead",
    ),
    "no_annotations": Kind(
        WARNING, "files", "have no `annotations`", "",
        {"train": "Nothing can be learned from boxes here", "test": "There will be no AP",
         "truth": "The report will have no AP"},
    ),
    # Boxes
    "malformed": Kind(
        REFUSED, "boxes", "are missing or not four numbers", "four numbers for each box",
        "Correct or remove these annotations", reading=True,
    ),
    # Detectron2's mapper would replace them by the upright boxes around them, without a word.
    "rotated": Kind(
        REFUSED, "boxes", "are rotated (BoxMode.XYWHA_ABS), which d2kd does not support",
        "upright boxes", "Register the set with the upright boxes around them, BoxMode.convert("
        "bbox, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS), and with their bbox_mode",
    ),
    "mode": Kind(
        REFUSED, "boxes", "have a bbox_mode that Detectron2 cannot convert (relative coordinates)",
        "boxes in pixels", "Multiply them by the width and the height of their image", reading=True,
    ),
    "not_finite": Kind(
        REFUSED, "boxes", "have a coordinate that is NaN or infinite", "finite numbers",
        "Correct or remove these annotations",
    ),
    "empty": Kind(WARNING, "boxes", "have a width or height of 0 or less", "", _LOST),
    "outside": Kind(WARNING, "boxes", "lie outside of their image", "", _LOST),
    "border": Kind(
        NOTE, "boxes", "extend beyond the border of their image", "",
        {"train": "They are cut at the border", "test": "They are used as they are",
         "truth": "They are used as they are"},
    ),
    "tiny": Kind(
        NOTE, "boxes", "have a side of a pixel or less", "", "They are used as they are"
    ),
    "relative": Kind(
        REFUSED, "boxes", "lie within the first pixel of their image: they look like coordinates "
        "relative to the size of the image", "boxes in pixels",
        "Multiply them by the width and the height of their image",
    ),
    "corners": Kind(
        REFUSED, "boxes", "reach far beyond the border of their image, and all boxes would be "
        "inside if they were x1, y1, x2, y2", "boxes as x, y, width, height",
        "Subtract x1 from x2 and y1 from y2; with a registered function, set bbox_mode to XYXY_ABS",
    ),
    "few_corners": Kind(
        WARNING, "boxes", "reach far beyond the border of their image, and all boxes would be "
        "inside if they were x1, y1, x2, y2", "",
        "COCO's format is x, y, width, height: are these corners?",
    ),
    "no_usable": Kind(
        REFUSED, "boxes", "are empty or outside of their image", "boxes that can be used",
        "Do the coordinates belong to another image size?",
    ),
    "class_number": Kind(
        REFUSED, "boxes", "have a class number outside of the set's classes",
        "category_id from 0 to the number of classes - 1", "Correct the numbers",
    ),
    "annotated_classes": Kind(
        REFUSED, "images", "have other values as annotated_classes",
        "class numbers from 0 to the number of classes - 1 as annotated_classes",
        "Correct the numbers",
    ),
    # Images
    "missing": Kind(
        REFUSED, "images", "have no file", "an image file at each file_name",
        "",  # it depends on the path: `missing_file_hint`
        reading=True,
    ),
    "damaged": Kind(
        REFUSED, "images", "cannot be read", "images that can be read",
        "Replace the files, or remove these images from the set", reading=True,
    ),
    "depth": Kind(
        REFUSED, "images", "have more than 8 bits a channel; reading would cut them off, so that "
        "they are white or black", "images of 8 bits a channel",
        "Scale them to the range 0 to 255 and save them again, or use a mapper that does",
        reading=True,
    ),
    "size": Kind(
        REFUSED, "images", "have another size than their annotation says",
        "images of the annotated size", "Correct width and height, or use the right images",
        reading=True,
    ),
    "remote": Kind(
        NOTE, "images", "are not local files", "", "They are not looked at before they are used"
    ),
}  # fmt: skip


def describe(defect: Defect, data: str, role: str, standard: bool = True) -> tuple[str, str]:
    """Level and message of a defect.

    Args:
        data: name of the set.
        role: "train", "test", "truth" (of labels) or "labeling" (images to label).
        standard: whether Detectron2's own mapper reads the images.
    """
    kind = KINDS[defect.kind]
    done = kind.done if isinstance(kind.done, str) else kind.done.get(role, kind.done["truth"])
    done = missing_file_hint(defect.example) if defect.kind == "missing" else f"{done}."
    found = f"{defect.count} of {defect.total} {kind.unit}"
    level = WARNING if kind.level == REFUSED and kind.reading and not standard else kind.level
    if level == REFUSED:
        example = f"{found} that {kind.found}, such as {defect.example}"
        return level, f"{data}: expected {kind.expected}, found {example}. {done}"
    return level, f"{data}: {found} {kind.found}, such as {defect.example}. {done}"
