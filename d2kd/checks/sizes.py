"""Sizes of images in a config that do not fit its models."""

from __future__ import annotations

from typing import Any

from detectron2.data import transforms as T
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..loading import resolve_target

__all__ = ["check_sizes"]


def check_sizes(cfg: DictConfig) -> None:
    """Refuse images that are larger than the square of the trained detector (ViTDet).

    Detectron2 would crop them in silence, or fail in `copy_`.

    Raises:
        ValueError: the message names the field, what was expected and what was found.
    """
    student = cfg.model.get("student", cfg.model)
    square = OmegaConf.select(student, "backbone.square_pad") if _is_node(student) else None
    if not square:
        return
    for section in ("train", "test"):
        field = f"dataloader.{section}.mapper.augmentations"
        longest = _longest_side(OmegaConf.select(cfg, field))
        if longest is not None and longest > square:
            raise ValueError(
                f"{field}: expected images of at most {square} pixels, because the backbone pads "
                f"to a square of this size (square_pad), found {longest}. Set max_size={square} of "
                f"its ResizeShortestEdge."
            )


def _longest_side(augmentations: Any) -> int | None:
    """The limit of the longer side after these augmentations, in pixels; None if unknown."""
    longest: int | None = None
    for node in augmentations if isinstance(augmentations, ListConfig) else ():
        if not _is_node(node) or "_target_" not in node:
            return None  # it may do anything
        target = resolve_target(node)
        if target is T.ResizeShortestEdge:
            longest = node.get("max_size")
        elif target is T.FixedSizeCrop:  # it also pads to this size
            longest = max(node.crop_size)
        elif target is T.ResizeScale:
            longest = max(node.target_height, node.target_width)
        elif isinstance(target, type) and issubclass(target, T.RandomCrop):
            longest = None  # smaller, and it is not said by how much
    return longest


def _is_node(value: Any) -> bool:
    return isinstance(value, DictConfig)
