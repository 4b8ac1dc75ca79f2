"""Data for training: register datasets, mix them, and load images whose labels are incomplete.

    manifest.py     list the images of a dataset or folder
    folders.py      register datasets by their place in the data folder (layout.py has their names)
    coco_folder.py  find and register the COCO files of a folder in one of the usual layouts
    convert/        convert labels of other formats into such folders
    classes.py      names of the classes of a dataset
    images.py       which files are images, and their sizes
    crowdhuman.py   CrowdHuman
    demo.py         the built-in demo set (demo_images.py draws it)
    views.py        a weak and a strong view of each image
    partial.py      images with pseudo labels, with labels of some classes only, or without labels
    two_sizes.py    one view of an image at the sizes of student and teacher
    workers.py      the worker processes of data loaders
    augment.py      strong augmentations that Detectron2 does not have

Names are imported when they are first used: some of these modules import PyTorch, which takes
seconds, and making the demo set does not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augment import RandomBlur, RandomErase
    from .coco_folder import CocoFolder, register_coco_folder
    from .crowdhuman import register_crowdhuman
    from .demo import register_demo
    from .folders import register_folder, register_folders
    from .partial import (
        PartialMapper,
        exclude_images,
        load_class_subset,
        load_unlabeled,
        mix,
        random_subset,
        register_class_subset,
    )
    from .two_sizes import TwoSizeMapper
    from .views import TwoViewMapper, relabel

__all__ = [
    "CocoFolder",
    "PartialMapper",
    "RandomBlur",
    "RandomErase",
    "TwoSizeMapper",
    "TwoViewMapper",
    "exclude_images",
    "load_class_subset",
    "load_unlabeled",
    "mix",
    "random_subset",
    "register_all",
    "register_class_subset",
    "register_coco_folder",
    "register_crowdhuman",
    "register_demo",
    "register_folder",
    "register_folders",
    "relabel",
]

_MODULES = {
    "augment": ("RandomBlur", "RandomErase"),
    "coco_folder": ("CocoFolder", "register_coco_folder"),
    "crowdhuman": ("register_crowdhuman",),
    "demo": ("register_demo",),
    "folders": ("register_folder", "register_folders"),
    "partial": (
        "PartialMapper",
        "exclude_images",
        "load_class_subset",
        "load_unlabeled",
        "mix",
        "random_subset",
        "register_class_subset",
    ),
    "two_sizes": ("TwoSizeMapper",),
    "views": ("TwoViewMapper", "relabel"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def register_all(root: str | None = None) -> None:
    """Register all datasets of d2kd with Detectron2, and those in the layout of `folders`.

    Nothing is read, made or downloaded here.

    Args:
        root: the data folder; default: $DETECTRON2_DATASETS, or ``datasets``.
    """
    from .crowdhuman import register_crowdhuman
    from .demo import register_demo
    from .folders import register_folders

    register_crowdhuman(root)
    register_demo(root)
    register_folders(root)
