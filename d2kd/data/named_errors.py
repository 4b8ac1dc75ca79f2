"""Say which image an error is about."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import instantiate
from detectron2.data.detection_utils import read_image
from torch.utils.data import get_worker_info

from .workers import ignore_interrupts

__all__ = ["NamedErrors", "build_loader", "name_errors"]

logger = logging.getLogger(__name__)


class NamedErrors:
    """Calls a mapper, and names the file of an image that it cannot read or transform.

    Decoders do not know the name: "image file is truncated" is all that they say about a file that
    is damaged behind its header. `d2kd.data.audit` finds most of them before training.

    Detectron2's loaders have no place for a function that starts a worker, so the first image does
    what `ignore_interrupts` is for.

    Args:
        mapper: function from a dict of Detectron2's dataset format to an input of a model.
    """

    def __init__(self, mapper: Callable[[dict], Any]):
        self.mapper = mapper

    def __call__(self, image: dict) -> Any:
        """
        Raises:
            ValueError: an image cannot be read.
            Exception: whatever else the mapper raised, unchanged. The log has the image's file.
        """
        if get_worker_info() is not None:
            ignore_interrupts()
        name = image.get("file_name") if isinstance(image, Mapping) else None
        try:
            return self.mapper(image)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
            if name is None or str(name) in str(error):
                raise
            damaged = _find_damaged_file(image)
            if damaged is None:  # a mistake in the mapper, an augmentation or the annotations
                logger.error("The mapper cannot transform %s, which can be read.", name)
                raise
            raise ValueError(
                f"{damaged}: expected an image that can be read, found {type(error).__name__}: "
                f"{error}. Replace the file, or remove the image from its set."
            ) from error

    def __getattr__(self, name: str) -> Any:
        if name == "mapper":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.mapper, name)


def _find_damaged_file(image: Mapping) -> str | None:
    """The first file of an image that cannot be read: the image itself, or its segmentation."""
    for key, path in image.items():
        if path and str(key).endswith("file_name"):
            try:
                read_image(path)
            except Exception:  # whatever the image library raises
                return str(path)
    return None


def name_errors(mapper: Any) -> Any:
    """`NamedErrors` of a mapper; anything that cannot be called, as it is."""
    return NamedErrors(mapper) if callable(mapper) else mapper


def build_loader(node: Any) -> Any:
    """Build a data loader from its LazyConfig node; the errors of its mapper name the image."""
    if not isinstance(node, Mapping) or "mapper" not in node:
        return instantiate(node)
    values = {str(key): value for key, value in node.items()}
    return instantiate({**values, "mapper": name_errors(instantiate(values["mapper"]))})
