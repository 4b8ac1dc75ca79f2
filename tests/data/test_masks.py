"""Masks that a mapper needs: what we refuse is what stops Detectron2's mapper."""

import contextlib

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper

from d2kd.data import PartialMapper
from d2kd.data.masks import check_masks, check_records
from tests.data.audit import sets

MASK = [[1, 1, 9, 1, 9, 9]]


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(
    "masks, crowds",
    [
        ((1, 1), ()),
        ((1, 0), ()),
        ((0, 1), ()),
        ((0, 0), ()),
        ((), ()),
        ((1, 0), (1,)),
        ((1,), (0,)),
    ],
)
def test_an_image_is_refused_where_detectron2_stops(tmp_path, recompute, masks, crowds):
    sets.draw(tmp_path / "a.png")
    rows = [
        dict(bbox=[2, 2, 9, 9], bbox_mode=1, category_id=0, iscrowd=int(i in crowds))
        | (dict(segmentation=MASK) if mask else {})
        for i, mask in enumerate(masks)
    ]
    record = dict(file_name=str(tmp_path / "a.png"), height=64, width=64, annotations=rows)
    mapper = DatasetMapper(
        True,
        augmentations=[],
        image_format="RGB",
        use_instance_mask=True,
        recompute_boxes=recompute,
    )
    stops = False
    try:
        mapper(record)
    except (AttributeError, KeyError):
        stops = True
    # Detectron2 takes an image whose first box has no mask for one without masks.
    misses = masks == (0, 1)
    with (
        pytest.raises(ValueError, match=rf"expected a mask .* found \d for .*{tmp_path}")
        if stops or misses
        else contextlib.nullcontext()
    ):
        check_records([record], recompute=recompute)


def own_mapper(use_instance_mask):
    return lambda record: record


def test_only_mappers_that_use_masks_need_them():
    record = dict(file_name="a.png", annotations=[dict(segmentation=MASK), {}])
    fields = dict(is_train=True, augmentations=[], image_format="RGB")
    check_masks(L(DatasetMapper)(**fields, use_instance_mask=False), [record])
    check_masks(None, [record])
    check_masks(L(own_mapper)(use_instance_mask=True), [record])
    with pytest.raises(ValueError, match=r"use_instance_mask: .* found 1 for 2 boxes in a.png"):
        check_masks(L(DatasetMapper)(**fields, use_instance_mask=True), [record])


def test_the_partial_mapper_takes_images_without_masks():
    record = dict(file_name="a.png", annotations=[{}, {}])
    fields = dict(is_train=True, augmentations=[], image_format="RGB")
    fields |= dict(use_instance_mask=True, recompute_boxes=True)
    check_masks(L(PartialMapper)(**fields), [record])
    with pytest.raises(ValueError, match=r"recompute_boxes: .* found 0 for 2 boxes in a.png"):
        check_masks(L(DatasetMapper)(**fields), [record])
