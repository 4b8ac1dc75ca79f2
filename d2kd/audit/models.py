"""How many classes the models of a config have."""

from __future__ import annotations

import contextlib
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..loading import load_detector_config
from ..yacs_config import yacs_num_classes

__all__ = ["num_classes", "student_classes"]


def num_classes(node: Any, path: str, setup: Any = None) -> tuple[str, int | None]:
    """The field of a config that says how many classes a detector has, and the number.

    Args:
        node: a LazyConfig node, the path of a config, or a name in Detectron2's model zoo.
        path: of the node.
        setup: for the config of a project; see `load_detector_config`.

    Returns:
        the field, and the number; None where the config does not say it.
    """
    if isinstance(node, str):
        with contextlib.suppress(Exception):  # building the model reports what is wrong with it
            config = load_detector_config(node, setup)
            if "MODEL" in config:  # yacs
                _, number = yacs_num_classes(config) or ("", None)
                return path, number
            inner = config.model.get("student", config.model)
            return path, num_classes(inner, path)[1]
        return path, None
    if isinstance(node, DictConfig):
        if OmegaConf.select(node, "config.MODEL"):  # from a yacs config
            key, number = yacs_num_classes(node.config) or ("", None)
            return f"{path}.config.{key}" if key else path, number
        for key in ("num_classes", "roi_heads.num_classes"):
            number = OmegaConf.select(node, key)
            if isinstance(number, int):
                return f"{path}.{key}", number
    return path, None


def student_classes(cfg: DictConfig) -> tuple[str, int | None]:
    """`num_classes` of the detector that a config trains."""
    if "student" in cfg.model:
        return num_classes(cfg.model.student, "model.student", cfg.model.get("setup"))
    return num_classes(cfg.model, "model")
