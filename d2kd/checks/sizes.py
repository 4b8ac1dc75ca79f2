"""Sizes of images in a config that do not fit its models."""

from __future__ import annotations

from typing import Any

from detectron2.data import transforms as T
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..data import TwoSizeMapper
from ..lazy import resolve_target
from .names import field_names

__all__ = ["check_sizes"]


def check_sizes(cfg: DictConfig) -> None:
    """Check the sizes of images that a config says.

    Images that are larger than the square of the trained detector (ViTDet) are refused: Detectron2
    would crop them in silence, or fail in `copy_`. A mapper that gives the teacher pixels of its
    own size needs a teacher that takes them.

    Raises:
        ValueError: the message names the field, what was expected and what was found.
    """
    _check_square(cfg)
    teacher = cfg.model.get("teacher")
    for section in ("train", "test"):
        mapper = OmegaConf.select(cfg, f"dataloader.{section}.mapper")
        if _is_two_sizes(mapper) and _is_node(teacher) and teacher.get("image_size") is None:
            if "image_size" not in (field_names(teacher) or ["image_size"]):
                name = resolve_target(teacher).__name__
                raise ValueError(
                    f"dataloader.{section}.mapper: expected a mapper that gives one size, such as "
                    f"PartialMapper, because model.teacher, a {name}, takes no pixels of its own "
                    f"size, found {resolve_target(mapper).__name__}. FeatureTeacher.scale resizes "
                    f"the student's images for its network."
                )
            raise ValueError(
                f"model.teacher.image_size: expected the size that the teacher was trained with, "
                f"such as [800, 1333], because dataloader.{section}.mapper gives the teacher its "
                f"own pixels, found none. Set it, or use another mapper."
            )


def _check_square(cfg: DictConfig) -> None:
    student = cfg.model.get("student", cfg.model)
    square = OmegaConf.select(student, "backbone.square_pad") if _is_node(student) else None
    if not square:
        return
    for section in ("train", "test"):
        mapper = OmegaConf.select(cfg, f"dataloader.{section}.mapper")
        last = "student_resize" if _is_two_sizes(mapper) else "augmentations"
        longest = _longest_side(mapper.get(last)) if _is_node(mapper) else None
        if longest is not None and longest > square:
            raise ValueError(
                f"dataloader.{section}.mapper.{last}: expected images of at most {square} pixels, "
                f"because the backbone pads to a square of this size (square_pad), found up to "
                f"{longest}. Resize to at most {square} pixels, for example with "
                f"ResizeShortestEdge(..., max_size={square})."
            )


def _is_two_sizes(mapper: Any) -> bool:
    if not _is_node(mapper) or "_target_" not in mapper:
        return False
    target = resolve_target(mapper)
    return isinstance(target, type) and issubclass(target, TwoSizeMapper)


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
        elif target is T.Resize:
            shape = node.shape
            longest = shape if isinstance(shape, int) else max(shape)
        elif isinstance(target, type) and issubclass(target, T.RandomCrop):
            longest = None  # smaller, and it is not said by how much
    return longest


def _is_node(value: Any) -> bool:
    return isinstance(value, DictConfig)
