"""Backbones that Detectron2 does not have: networks of timm and torchvision."""

from .library import LibraryBackbone, pixel_statistics
from .patches import PatchBackbone, is_patch_network

__all__ = ["LibraryBackbone", "PatchBackbone", "is_patch_network", "pixel_statistics"]
