"""Read the pixels of an image file, and refuse a file that would be read wrongly."""

from __future__ import annotations

import os

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import UnidentifiedImageError

from .audit.images import read_header

__all__ = ["read_pixels"]


def read_pixels(path: str | os.PathLike, image_format: str = "RGB") -> np.ndarray:
    """The pixels of a file as Detectron2 reads them, turned as its EXIF data say.

    Args:
        path: of the file.
        image_format: "RGB" or "BGR".

    Returns:
        (height, width, 3), uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image or is damaged, or it has values that 8 bits cannot say, of
            which Pillow would make a black or a white image.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"expected an image at '{path}', found no file.")
    header = read_header(path)
    if header.problem == "depth":
        raise ValueError(
            f"expected an image of 8 bits for each channel at '{path}', found {header.detail}. "
            f"Convert it first."
        )
    try:
        return read_image(path, format=image_format)
    except Exception as error:  # whatever the image library raises
        no_image = isinstance(error, UnidentifiedImageError)
        found = "another file" if no_image else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"expected an image that can be read at '{path}', found {found}. Replace the file, or "
            f"leave it out."
        ) from error
