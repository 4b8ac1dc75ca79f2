"""Detectors from wherever their config lies."""

from __future__ import annotations

import os

from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from omegaconf import OmegaConf
from torch import nn

__all__ = ["build_detector", "load_detector_config"]


def build_detector(source: nn.Module | str) -> tuple[nn.Module, str | None]:
    """Build a detector without loading its weights.

    Args:
        source: the detector itself, a LazyConfig node, the path of a LazyConfig (.py, or the .yaml
            that a run leaves) or yacs (.yaml) file, or a name in Detectron2's model zoo.

    Returns:
        the detector, and the channel order of the images that its config loads, where it says so.

    Raises:
        FileNotFoundError: no file or zoo entry of that name.
    """
    if isinstance(source, nn.Module):
        return source, None
    if not isinstance(source, str):
        return instantiate(source), None
    config = load_detector_config(source)
    if "MODEL" in config:  # yacs
        config.MODEL.DEVICE = "cpu"
        return build_model(config), config.INPUT.FORMAT
    node = config.model
    order = OmegaConf.select(config, "dataloader.train.mapper.image_format")
    if "student" in node:  # of a distiller's config, its student
        return build_detector(node.student)[0], order
    return instantiate(node), order


def load_detector_config(source: str):
    """Read a config file or model-zoo entry, see `build_detector`."""
    from detectron2 import model_zoo  # imports pkg_resources, which is slow and warns

    if not os.path.isfile(source):
        try:
            return model_zoo.get_config(source)
        except RuntimeError:
            raise FileNotFoundError(
                f"expected the path of a .py or .yaml config or a name in Detectron2's model zoo "
                f"such as 'COCO-Detection/retinanet_R_101_FPN_3x.yaml', found {source!r}."
            ) from None
    with open(source) as f:
        lazy = source.endswith(".py") or any(line.startswith("model:") for line in f)
    if lazy:
        return LazyConfig.load(source)
    config = get_cfg()
    config.merge_from_file(source)
    return config
