"""Which mappers of a config are Detectron2's."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetMapper
from omegaconf import DictConfig

from ..lazy import resolve_target

__all__ = ["is_standard_mapper"]


def is_standard_mapper(node: Any) -> bool:
    """Whether a node is Detectron2's mapper, or a subclass of it that reads images as it does."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return False
    target = resolve_target(node)
    own = isinstance(target, type) and issubclass(target, DatasetMapper)
    return own and target.__call__ is DatasetMapper.__call__
