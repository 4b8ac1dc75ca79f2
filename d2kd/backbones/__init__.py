"""Backbones that Detectron2 does not have: networks of timm and torchvision."""

from .library import LibraryBackbone

__all__ = ["LibraryBackbone"]
