"""Image files: which suffixes count, how to find them, and the size from the header of a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

__all__ = ["SUFFIXES", "find_images", "image_size", "is_turned"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

EXIF_ORIENTATION = 274


def find_images(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """Files of images: the given ones, and those in given folders, by name.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there is no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.iterdir())
            found += [x for x in inside if x.suffix.lower() in SUFFIXES and x.is_file()]
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"expected an image or a folder of images, found no '{path}'.")
    if not found:
        raise ValueError(
            f"expected images, found none in {', '.join(map(str, paths))}. Of a folder, files that "
            f"end with {', '.join(SUFFIXES)} count; folders in it are not searched."
        )
    return found


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
