"""Image files: which suffixes count, and the size of an image from the header of its file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

__all__ = ["SUFFIXES", "image_size"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

EXIF_ORIENTATION = 274


def image_size(file: Path) -> tuple[int, int]:
    """Width and height as Detectron2 reads the image. Only the header of the file is read."""
    with Image.open(file) as image:
        turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5  # by 90 degrees
        return image.size[::-1] if turned else image.size
