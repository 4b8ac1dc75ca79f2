"""The data folder and its names. The layout is in `folders`, which needs Detectron2."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["dataset_name", "missing_file_hint"]


def dataset_name(folder: str, split: str) -> str:
    """Name of a split: `<folder>_<split>`, or `<split>` if that begins with `<folder>_`."""
    return split if split.startswith(f"{folder}_") else f"{folder}_{split}"


def missing_file_hint(path: str) -> str:
    """What to do about a file that is missing, as sentences.

    The data folder explains relative paths and those below it, and no others.
    """
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    if not os.path.isabs(path) or Path(path).is_relative_to(os.path.abspath(root)):
        return "Detectron2 looks for datasets in $DETECTRON2_DATASETS, by default ./datasets."
    return "Put the file there, or correct the path with which the dataset is registered."
