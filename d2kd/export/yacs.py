"""Write a detector as one of Detectron2's older YAML configs, for `get_cfg().merge_from_file`.

`yacs_keys` reads the keys from the detector. `write_yacs` builds the detector from the file by
Detectron2 alone, and compares the two.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN, RetinaNet
from omegaconf import OmegaConf
from torch import nn

from ..checkpoint import load_strictly
from ..files import write_file
from ..model_zoo.detector import student_node
from .source import Source, dataset_names
from .structure import differences, to_plain
from .yacs_keys import (
    CannotSayError,
    Keys,
    backbone_keys,
    expect,
    rcnn_keys,
    retinanet_keys,
    shorten,
)

__all__ = ["YACS_FILE", "CannotSayError", "make_yacs", "write_yacs"]

YACS_FILE = "config_yacs.yaml"

# They do not change what is detected. RetinaNet's `input_format` is for pictures of training only:
# INPUT.FORMAT is the order in which the student was trained.
TRAINING = ("loss_weight", "vis_period", "input_format")

HEADER = """\
# For get_cfg().merge_from_file(...) and DefaultPredictor. model.pth is a path relative to the
# current folder: set MODEL.WEIGHTS where it is elsewhere, and MODEL.DEVICE "cpu" without a GPU.
"""


def write_yacs(source: Source, folder: Path) -> nn.Module:
    """Write `YACS_FILE`, and build the detector from it and from model.pth by Detectron2 alone.

    Args:
        source: the student.
        folder: has model.pth; the file is written into it.

    Returns:
        the built detector, on the CPU and in evaluation mode.

    Raises:
        CannotSayError: the config cannot say what the detector is. There may be a wrong file.
    """
    path = folder / YACS_FILE
    config = make_yacs(source)
    content = {"VERSION": config.VERSION, **_changed(config, get_cfg())}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
    write_file(path, HEADER + text)
    built = _build(path)
    found = next(differences(source.detector.model, built, TRAINING), None)
    if found is not None:
        raise CannotSayError(found)
    load_strictly(built, str(folder / "model.pth"))
    return built


def _build(path: Path) -> nn.Module:
    config = get_cfg()
    try:
        config.merge_from_file(str(path))
        config.MODEL.DEVICE = "cpu"
        with torch.random.fork_rng(devices=[]):
            return build_model(config).eval().requires_grad_(False)
    except (AssertionError, KeyError, ValueError) as error:  # how Detectron2 refuses a config
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CannotSayError(f"Detectron2 refuses its config ({reason})") from error


def _changed(config: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from Detectron2's defaults, in plain dicts and lists."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, CfgNode):
            inner = _changed(value, default[key])
            if inner:
                changed[key] = inner
        elif value != default[key]:
            changed[key] = to_plain(value)
    return changed


def make_yacs(source: Source) -> CfgNode:
    """Detectron2's older config of a student.

    It has the detector, the resizing of test images and the names of the test sets. The loss
    functions, matchers and samplers of the detector are in it, too. It has no schedule and no
    augmentations of training.

    Raises:
        CannotSayError: a part of the detector has no keys there.
    """
    model: Any = source.detector.model
    expect("detector", model, RetinaNet, GeneralizedRCNN)
    keys = {
        "MODEL.META_ARCHITECTURE": type(model).__name__,
        "MODEL.WEIGHTS": "model.pth",
        "MODEL.PIXEL_MEAN": shorten(model.pixel_mean),
        "MODEL.PIXEL_STD": shorten(model.pixel_std),
        "INPUT.FORMAT": source.detector.input_format,
        "DATASETS.TEST": dataset_names(source.cfg, "test"),
        **_test_size(source.detector.augmentations.augs),
        **backbone_keys(model.backbone, _freeze_at(student_node(source.cfg))),
        **(retinanet_keys(model) if isinstance(model, RetinaNet) else rcnn_keys(model)),
    }
    config = get_cfg()
    for key, value in keys.items():
        _assign(config, key, value)
    return config


def _assign(config: CfgNode, key: str, value: Any) -> None:
    """Set a key; numbers get the type of the default, because yacs compares types."""
    section, _, name = key.rpartition(".")
    node = functools.reduce(getattr, section.split("."), config)
    default, value = node[name], to_plain(value)
    if isinstance(default, (int, float)) and value == type(default)(value):
        value = type(default)(value)
    node[name] = tuple(value) if isinstance(default, tuple) else value


def _test_size(augmentations: list[Any]) -> Keys:
    if not augmentations:
        return {"INPUT.MIN_SIZE_TEST": 0}
    resize = augmentations[0]
    if len(augmentations) == 1 and type(resize) is T.ResizeShortestEdge:
        shortest = resize.short_edge_length[0]
        same = T.ResizeShortestEdge([shortest, shortest], resize.max_size)
        if set(resize.short_edge_length) == {shortest} and resize.interp == same.interp:
            return {"INPUT.MIN_SIZE_TEST": shortest, "INPUT.MAX_SIZE_TEST": resize.max_size}
    raise CannotSayError(
        "its test images are changed by something else than one bilinear ResizeShortestEdge of a "
        "fixed size"
    )


def _freeze_at(node: Any) -> int | None:
    """The number of frozen stages in a config: of a ResNet, of an FPN on it, or a yacs config."""
    places = (
        "backbone.freeze_at",
        "backbone.bottom_up.freeze_at",
        "config.MODEL.BACKBONE.FREEZE_AT",
    )
    values = (OmegaConf.select(node, place) for place in places)
    return next((value for value in values if value is not None), None)
