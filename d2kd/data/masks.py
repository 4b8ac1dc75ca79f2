"""Check that a training set has the masks that its mapper needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import DatasetMapper

from ..lazy import resolve_target
from .mappers import is_standard_mapper

__all__ = ["check_masks", "check_records"]


def check_masks(mapper: Any, dataset: Any) -> None:
    """Check that a training set has the masks that its mapper needs.

    Args:
        mapper: the node of the config. Only Detectron2's and mappers that read images as it does
            are known.
        dataset: only a list, of dicts of Detectron2's standard format, is looked at.

    Raises:
        ValueError: masks are missing.
    """
    if not isinstance(dataset, list) or not is_standard_mapper(mapper):
        return
    if mapper.get("use_instance_mask"):
        # PartialMapper recomputes boxes in its own way.
        own = resolve_target(mapper)._transform_annotations
        plain = own is DatasetMapper._transform_annotations
        check_records(dataset, recompute=plain and bool(mapper.get("recompute_boxes")))


def check_records(records: Sequence[Mapping[str, Any]], *, recompute: bool) -> None:
    """Check the masks of a set for Detectron2's mapper with `use_instance_mask`.

    Args:
        records: dicts of Detectron2's standard format.
        recompute: whether boxes are computed from masks. Then, each image needs some. Else, an
            image may have none.

    Raises:
        ValueError: masks are missing.
    """
    for record in records:
        if "annotations" not in record:
            continue
        rows = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        count = sum("segmentation" in a for a in rows)
        what = f"{count} for {len(rows)} boxes in {record.get('file_name')}"
        if recompute and count < max(len(rows), 1):
            raise ValueError(
                f"dataloader.train.mapper.recompute_boxes: expected a mask (segmentation) of each "
                f"box, and one at least in each image, found {what}. Set recompute_boxes=False."
            )
        if 0 < count < len(rows):
            raise ValueError(
                f"dataloader.train.mapper.use_instance_mask: expected a mask (segmentation) of "
                f"each box of an image, or of none, found {what}. Add the masks, or set "
                f"use_instance_mask=False."
            )
