"""Audit one set of data: a COCO file, a dataset that is registered with Detectron2, or dicts."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .. import demo
from . import cache
from .boxes import find_box_defects
from .contents import Contents, info_is_needed, read_coco, read_records
from .images import find_image_defects
from .kinds import Defect

__all__ = ["AuditedSet", "CocoSource", "audit_coco", "audit_records", "audit_registered"]
__all__ += ["coco_source"]

REPAIRED = {"annotation_ids", "no_area", "no_iscrowd", "no_info", "no_size"}
TABLE = {
    *REPAIRED, "image_entries", "image_ids", "image_twice", "category_entries", "category_ids",
    "annotation_entries", "image_types", "category_types", "annotation_types", "strangers",
    "all_strangers", "unknown_category", "ignore",
}  # fmt: skip


@dataclass
class AuditedSet:
    """What was found in one set.

    Attributes:
        name: of the set.
        images, empty: number of images, and of those without a box that can be learned.
        boxes, crowds: number of boxes, and of those with ``iscrowd``.
        classes: the names; None if the set does not have any.
        used: number of classes that the boxes and "annotated_classes" need, the largest class
            number + 1.
        defects: see `d2kd.data.audit.kinds`.
        breaks_loading: whether Detectron2 cannot load the COCO file before it is repaired.
        source: the COCO file and its image folder, where the set is loaded from one.
    """

    name: str
    images: int
    empty: int
    boxes: int
    crowds: int
    classes: list[str] | None
    used: int
    defects: list[Defect] = field(default_factory=list)
    breaks_loading: bool = False
    source: CocoSource | None = None

    @property
    def needs_repair(self) -> bool:
        """Whether a repaired copy of the COCO file has to be used for evaluation."""
        return any(defect.kind in REPAIRED for defect in self.defects)

    @property
    def lacks_sizes(self) -> bool:
        """Whether sizes had to be read from images, which may change although the file does not."""
        return any(defect.kind == "no_size" for defect in self.defects)

    @property
    def table_defects(self) -> list[Defect]:
        """Defects of the COCO file's entries and ids. Defects of boxes and images are left out."""
        return [defect for defect in self.defects if defect.kind in TABLE]


@dataclass(frozen=True)
class CocoSource:
    """A COCO file, and the folder to which its file names are relative."""

    path: str
    image_root: str


def coco_source(name: str) -> CocoSource | None:
    """The COCO file of a registered dataset that Detectron2's `load_coco_json` loads unchanged.

    None for a dataset with a function of its own: what it loads is known only after loading.
    """
    function = DatasetCatalog[name]
    if isinstance(function, functools.partial):
        if function.func is load_coco_json:
            return CocoSource(str(function.args[0]), str(function.args[1]))
        if function.func is not demo.load_split:
            return None
        root, split = function.args
        demo.make_demo(root, splits=[split])  # its file does not exist before
    elif getattr(function, "__qualname__", "") != "register_coco_instances.<locals>.<lambda>":
        return None
    metadata = MetadataCatalog.get(name)
    return CocoSource(str(metadata.json_file), str(metadata.image_root))


def audit_registered(
    name: str, *, look_at_images: bool = True, filter_empty: bool = False
) -> AuditedSet | None:
    """Audit a dataset that is registered with Detectron2.

    Args:
        look_at_images: whether to read the headers of the image files.
        filter_empty: whether images without a box that can be learned are not used, so that their
            files are not looked at.

    Returns:
        what was found; None for a set of another type than a list of dicts.

    Raises:
        FileNotFoundError: a file of the labels is missing.
        ValueError: the labels cannot be read.
    """
    source = coco_source(name)
    metadata = MetadataCatalog.get(name)
    if source is not None:
        audited = audit_coco(source, name, look_at_images=look_at_images, filter_empty=filter_empty)
        listed = metadata.get("thing_classes", None)
        if listed is not None and audited.classes != list(listed):
            raise ValueError(
                f"{name}: expected the categories of {source.path} to be the classes with which "
                f"the set is registered, {_short(listed)}, found {_short(audited.classes or [])}. "
                f"Register the file under another name, without thing_classes."
            )
        return audited
    records = DatasetCatalog.get(name)
    if not _is_list_of_dicts(records):
        return None
    return audit_records(
        records,
        metadata.get("thing_classes", None),
        name,
        look_at_images=look_at_images,
        filter_empty=filter_empty,
    )


def audit_coco(
    source: CocoSource, name: str, *, look_at_images: bool = True, filter_empty: bool = False
) -> AuditedSet:
    """Audit a COCO file; what was read is cached by its size and time of change."""
    key = f"{os.path.abspath(source.path)} {source.image_root}"
    exists = os.path.exists(source.path)
    stamp = [*cache.stamp(source.path), info_is_needed()] if exists else None
    entry = cache.load("labels", key) if stamp else None
    if entry is not None and entry["stamp"] == stamp:
        audited = AuditedSet(**entry["audited"], source=source)
        audited.defects = [Defect(**x) for x in entry["audited"]["defects"]]
        audited.name = name
        files, sizes, learned = entry["files"], np.array(entry["sizes"], int), entry["learned"]
    else:
        contents = read_coco(source.path, source.image_root)
        audited = _summarize(contents, name)
        audited.source = source
        files, sizes, learned = contents.files, contents.sizes, _learned(contents).tolist()
        if stamp and not audited.lacks_sizes:
            told = {k: v for k, v in asdict(audited).items() if k != "source"}
            entry = dict(audited=told, files=files, sizes=sizes.tolist(), learned=learned)
            cache.store("labels", key, {"stamp": stamp, **entry})
    if look_at_images:
        chosen = np.array(learned, bool) if filter_empty else np.ones(len(files), bool)
        chosen_files = [f for f, c in zip(files, chosen, strict=True) if c]
        audited.defects += find_image_defects(chosen_files, sizes.reshape(-1, 2)[chosen], name)
    return audited


def audit_records(
    records: Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None,
    name: str,
    *,
    look_at_images: bool = True,
    filter_empty: bool = False,
) -> AuditedSet:
    """Audit dicts of Detectron2's standard format."""
    contents = read_records(records, classes)
    audited = _summarize(contents, name)
    if look_at_images:
        chosen = _learned(contents) if filter_empty else np.ones(len(records), bool)
        files = [f for f, c in zip(contents.files, chosen, strict=True) if c]
        audited.defects += find_image_defects(files, contents.sizes[chosen], name)
    return audited


def _learned(contents: Contents) -> np.ndarray:
    """(N,) bool, images that have a box which is no crowd."""
    counts = np.bincount(contents.owners[~contents.crowds], minlength=len(contents.files))
    return counts > 0


def _summarize(contents: Contents, name: str) -> AuditedSet:
    return AuditedSet(
        name=name,
        images=len(contents.files),
        empty=int((~_learned(contents)).sum()),
        boxes=len(contents.boxes),
        crowds=int(contents.crowds.sum()),
        classes=contents.classes,
        used=max(int(contents.labels.max(initial=-1)) + 1, contents.searched),
        defects=contents.defects + find_box_defects(contents),
        breaks_loading=contents.breaks_loading,
    )


def _is_list_of_dicts(records: Any) -> bool:
    return isinstance(records, Sequence) and all(isinstance(x, Mapping) for x in records)


def _short(names: Sequence[str], limit: int = 12) -> str:
    listed = ", ".join(map(str, names[:limit]))
    return f"{listed}, ... ({len(names)})" if len(names) > limit else listed
