"""Check what Detectron2's mapper makes of boxes and masks, before a data loader does."""

from __future__ import annotations

from typing import Any

from detectron2.data import build_detection_train_loader
from detectron2.data.build import get_detection_dataset_dicts
from omegaconf import DictConfig, OmegaConf

from ..data.mappers import is_standard_mapper
from ..lazy import resolve_target
from ..values import check_choice

__all__ = ["check_mappers"]


def check_mappers(cfg: DictConfig) -> None:
    """Check the fields of `dataloader.{train,test}.mapper` that depend on each other.

    Raises:
        ValueError: the message names the field, what was expected and what was found.
    """
    _check_there_is_one(OmegaConf.select(cfg, "dataloader.train"))
    for section in ("train", "test"):
        mapper = OmegaConf.select(cfg, f"dataloader.{section}.mapper")
        if not is_standard_mapper(mapper):
            continue
        path = f"dataloader.{section}.mapper"
        if section == "train" and not mapper.get("is_train", True):
            raise ValueError(
                f"{path}.is_train: expected True, found {mapper.is_train!r}. A mapper for "
                f"inference leaves out the boxes, so that there is nothing to learn from."
            )
        if mapper.get("recompute_boxes") and not mapper.get("use_instance_mask"):
            raise ValueError(
                f"{path}.recompute_boxes: expected use_instance_mask=True beside it, because boxes "
                f"are computed from masks, found {mapper.get('use_instance_mask', False)!r}. Set "
                f"recompute_boxes=False, or use_instance_mask=True if the data have masks."
            )
        if mapper.get("use_instance_mask"):
            form = mapper.get("instance_mask_format", "polygon")
            check_choice(f"{path}.instance_mask_format", form, ("polygon", "bitmask"))


def _check_there_is_one(loader: Any) -> None:
    if not isinstance(loader, DictConfig) or "_target_" not in loader:
        return
    dataset = loader.get("dataset")
    plain = isinstance(dataset, DictConfig) and "_target_" in dataset
    if not plain or resolve_target(dataset) is not get_detection_dataset_dicts:
        return  # other sets may give images that are ready
    if resolve_target(loader) is build_detection_train_loader and loader.get("mapper") is None:
        raise ValueError(
            "dataloader.train.mapper: expected a mapper that reads the images, such as "
            "L(DatasetMapper)(is_train=True, augmentations=[...], image_format='BGR'), found none."
        )
