"""Backbones beyond Detectron2's own."""

from .library import LibraryBackbone

__all__ = ["LibraryBackbone"]
