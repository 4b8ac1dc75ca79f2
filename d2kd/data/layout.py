"""Names of the datasets in a data folder. The layout is in `folders`, which needs Detectron2."""

from __future__ import annotations

__all__ = ["dataset_name"]


def dataset_name(folder: str, split: str) -> str:
    """Name of a split: `<folder>_<split>`, or `<split>` if that begins with `<folder>_`."""
    return split if split.startswith(f"{folder}_") else f"{folder}_{split}"
