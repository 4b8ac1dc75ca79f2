"""Data sets that d2kd registers with Detectron2."""

from __future__ import annotations


def register_all(root: str | None = None) -> None:
    """Register every data set of d2kd, and those that lie in its folder layout (`folders`).

    Nothing is read, made or downloaded here.

    Args:
        root: the data folder; default: $DETECTRON2_DATASETS, or ``datasets``.
    """
    from d2kd.data.crowdhuman import register_crowdhuman
    from d2kd.data.demo import register_demo
    from d2kd.data.folders import register_folders

    register_crowdhuman(root)
    register_demo(root)
    register_folders(root)
