"""Build a detector from a config: a LazyConfig, a yacs file, or a name in a model zoo."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from .lazy import load_lazy_config
from .recipes import get_config_file
from .yacs_config import build_yacs, is_yacs_file, read_yacs, setup_without_yacs
from .yacs_student import to_lazy_config

__all__ = [
    "BuiltDetector",
    "build_detector",
    "build_student",
    "load_detector_config",
    "load_student_config",
    "mapper_format",
    "node_input_format",
    "without_weights",
    "zoo_weights",
]

_MAX_SIZE = 1333  # Detectron2's default limit of the longest side, in pixels


class BuiltDetector(NamedTuple):
    """A detector without trained weights, and what its config says about its input.

    Attributes:
        model: the detector.
        input_format: channel order of the images that the config loads, "BGR" or "RGB"; None where
            the config does not say it.
        test_size: shortest side and limit of the longest side, in pixels, to which the config
            resizes test images; (0, 1333) for no resizing; None where the config does not say it.
    """

    model: nn.Module
    input_format: str | None = None
    test_size: tuple[int, int] | None = None


def build_detector(
    source: nn.Module | DictConfig | str,
    *,
    pretrained: bool = True,
    setup: Callable[[Any], Any] | str | None = None,
) -> BuiltDetector:
    """Build a detector without loading its weights.

    Args:
        source: the detector itself, a LazyConfig node, the path of a LazyConfig (.py, or the .yaml
            that a run saves) or of a yacs (.yaml) file, or a name in Detectron2's model zoo. Of a
            distiller's config, the student is built.
        pretrained: whether a library's backbone loads its own weights. False if a checkpoint of the
            whole detector replaces them anyway: their files then need not exist.
        setup: see `load_detector_config`.

    Raises:
        FileNotFoundError: there is no file and no zoo entry of that name.
        ValueError: a yacs file has keys or names modules that Detectron2 does not know, or `setup`
            is given for something else than a yacs file.
    """
    if setup is not None and not isinstance(source, str):
        raise setup_without_yacs(type(source).__name__)
    if isinstance(source, nn.Module):
        return BuiltDetector(source)
    if not isinstance(source, str):
        if not pretrained:
            source = copy.deepcopy(source)
            without_weights(source)
        return BuiltDetector(instantiate(source))
    config = load_detector_config(source, setup)
    if "MODEL" in config:  # yacs
        config.MODEL.DEVICE = "cpu"
        test_size = config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST
        return BuiltDetector(build_yacs(config, source, setup), config.INPUT.FORMAT, test_size)
    node = config.model
    formats = (mapper_format(config, section) for section in ("train", "test"))
    input_format = next((found for found in formats if found), None)
    # Of a distiller's config, the student.
    model = build_detector(node.get("student", node), pretrained=pretrained).model
    return BuiltDetector(model, input_format, _test_size(config))


def build_student(model: DictConfig, *, pretrained: bool = True) -> BuiltDetector:
    """Build the detector that a config trains: `model`, or the student of a distiller.

    Args:
        model: the node of the config.
        pretrained: see `build_detector`.
    """
    if "student" not in model:
        return build_detector(model, pretrained=pretrained)
    return build_detector(model.student, pretrained=pretrained, setup=model.get("setup"))


def _test_size(config: DictConfig) -> tuple[int, int] | None:
    """What the test mapper of a LazyConfig resizes images to; see `BuiltDetector`."""
    augmentations = _mapper_field(config, "test", "augmentations", "augmentation")
    if not isinstance(augmentations, ListConfig):
        return None  # none, or a function that makes the list
    for node in augmentations:
        shortest = node.get("short_edge_length")
        if shortest is not None:
            shortest = shortest if isinstance(shortest, int) else shortest[0]
            return shortest, node.get("max_size", _MAX_SIZE)
    return None if len(augmentations) else (0, _MAX_SIZE)


def load_detector_config(source: str, setup: Callable[[Any], Any] | str | None = None):
    """Read a config file or a model-zoo entry; see `build_detector`.

    Args:
        source: path of a file, or a name in the model zoo of Detectron2 or of d2kd.
        setup: the function of a project (PointRend, CenterNet2, TridentNet, ...) that adds the
            project's keys to a yacs config, or its dotted name, such as
            "point_rend.add_pointrend_config". Importing its package also registers the project's
            modules.

    Raises:
        FileNotFoundError: there is no file and no zoo entry of that name.
        ValueError: a yacs file has a key that Detectron2 does not know, there is no function of the
            name `setup`, or `setup` is given for a LazyConfig.
    """
    from detectron2 import model_zoo  # imports pkg_resources, which is slow and warns

    if not os.path.isfile(source):
        if setup is not None:
            raise FileNotFoundError(
                f"expected the path of a .yaml config, because setup adds the keys of a project to "
                f"it, found {source!r}. A path is relative to the current folder."
            )
        try:
            return model_zoo.get_config(source)
        except RuntimeError:
            pass  # it has no such name
        try:
            return load_lazy_config(get_config_file(source))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"expected the path of a .py or .yaml config, or a name in the model zoo of "
                f"Detectron2, such as 'COCO-Detection/retinanet_R_101_FPN_3x.yaml', or of d2kd, "
                f"such as 'my_data/teacher.py', found {source!r}. A path is relative to the "
                f"current folder."
            ) from None
    with open(source) as f:
        lazy = source.endswith(".py") or any(line.startswith("model:") for line in f)
    if lazy:
        if setup is not None:
            raise setup_without_yacs(source)
        return load_lazy_config(source)
    return read_yacs(source, setup)


def load_student_config(source: str, setup: Callable[[Any], Any] | str | None = None) -> DictConfig:
    """Read the config of a detector that is to be trained or was trained, as a LazyConfig.

    Args:
        source: path of a LazyConfig (.py, .yaml) or of a yacs (.yaml) file, or a name in
            Detectron2's model zoo. `d2kd.yacs_student.to_lazy_config` says what becomes of a yacs
            config.
        setup: see `load_detector_config`.

    Returns:
        the sections of the LazyConfig. From a yacs config, these are `model`, `dataloader`,
        `optimizer`, `lr_multiplier` and `train`. They do not need the file any more.

    Raises:
        FileNotFoundError: there is no file and no zoo entry of that name.
        ValueError: a key or a value of a yacs file is unknown, or `setup` is given for a
            LazyConfig.
    """
    if setup is None and os.path.isfile(source) and not is_yacs_file(source):
        return load_lazy_config(source)
    config = load_detector_config(source, setup)
    return to_lazy_config(config, source, setup) if "MODEL" in config else config


def mapper_format(config: DictConfig, section: str) -> str | None:
    """Channel order of the images that the mapper of a LazyConfig loads; None if it says none.

    Args:
        section: "train" or "test".
    """
    return _mapper_field(config, section, "image_format", "img_format")


def _mapper_field(config: DictConfig, section: str, *names: str) -> Any:
    """A field of a mapper under Detectron2's name, or else under the name that detrex gives it."""
    fields = (OmegaConf.select(config, f"dataloader.{section}.mapper.{name}") for name in names)
    return next((field for field in fields if field is not None), None)


def node_input_format(node: DictConfig) -> str | None:
    """Channel order that the node of a detector says, "BGR" or "RGB"; None if it says none."""
    return node.get("input_format") or OmegaConf.select(node, "config.INPUT.FORMAT")


def zoo_weights(source: Any) -> str:
    """URL of the weights that Detectron2's model zoo keeps for one of its configs.

    Raises:
        FileNotFoundError: `source` is not a name in the model zoo, or has no weights there.
    """
    from detectron2 import model_zoo

    try:
        return model_zoo.get_checkpoint_url(source)
    except (RuntimeError, AttributeError):
        raise FileNotFoundError(
            f"weights='zoo': expected `model` to be a name with weights in Detectron2's model zoo, "
            f"found {source if isinstance(source, str) else type(source).__name__!r}. "
            f"Give the path of a checkpoint."
        ) from None


def without_weights(node: DictConfig | ListConfig) -> None:
    """Remove all checkpoints from a model's config: of teachers and of libraries' backbones.

    The backbone is then built without its ImageNet weights, which a checkpoint of the whole
    detector replaces anyway.
    """
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        value = node[key]
        if isinstance(value, (DictConfig, ListConfig)):
            without_weights(value)
        elif key == "weights" and isinstance(value, str):  # box regression has numbers as weights
            node[key] = None
        elif key == "pretrained" and value:
            node[key] = False
