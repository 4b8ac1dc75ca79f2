"""Image files: which suffixes count, and the size of an image from the header of its file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

__all__ = ["SUFFIXES", "image_size", "is_turned"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

EXIF_ORIENTATION = 274


def image_size(file: Path) -> tuple[int, int]:
    """Width and height as Detectron2 reads the image. Only the header of the file is read."""
    with Image.open(file) as image:
        return image.size[::-1] if is_turned(image) else image.size


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps width and height."""
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # Detectron2 ignores EXIF data that cannot be read, too
        return False
