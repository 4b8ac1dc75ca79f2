"""Load a LazyConfig, and find the mistakes in it before the first iteration."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, ListConfig, OmegaConf

from . import model_zoo
from .data.partial import load_class_subset
from .loading import resolve_target
from .pseudo.coco import load_pseudo_labels

__all__ = ["check_config", "class_lists", "dataset_names", "load_config", "nodes"]


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a LazyConfig, fill in the fields of `train` that it leaves out, and apply overrides.

    Args:
        path: path of the config, or the name of one of d2kd's, see `d2kd.model_zoo`.
        overrides: changes such as "train.max_iter=1000", in Hydra's syntax.

    Returns:
        the config. Missing fields of `train` have the defaults of configs/common/train.py.

    Raises:
        ValueError: an override names a field that is not there.
    """
    if not Path(path).is_file():
        # A name in d2kd's model zoo; else this raises an error with the nearest names.
        path = model_zoo.get_config_file(path.removeprefix("configs/"))
    cfg = LazyConfig.load(path)
    for section in ("model", "dataloader", "train"):
        if section not in cfg:
            sections = ", ".join(map(str, cfg)) or "no section"
            raise ValueError(f"{path}: expected a section {section!r}, found {sections}.")
    _fill_in(cfg.train, model_zoo.get_config("common/train.py").train)
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        _check_key(cfg, key)
    return LazyConfig.apply_overrides(cfg, list(overrides))


def _fill_in(section: DictConfig, defaults: DictConfig) -> None:
    for key, value in defaults.items():
        if key not in section:
            section[key] = value
        elif isinstance(value, DictConfig) and isinstance(section[key], DictConfig):
            _fill_in(section[key], value)


def check_config(cfg: DictConfig) -> None:
    """Check fields, names of datasets, channel order and device of a config.

    It finds fields that their target does not have, datasets that are not registered, images in
    another channel order than the distiller or the training expects, and a device that this machine
    does not have. `d2kd.audit` looks into the data.

    Raises:
        ValueError: the message names the field, what was expected, what was found, and the nearest
            names.
    """
    for path, node in nodes(cfg):
        if "_target_" in node:
            _check_fields(path, node)
    _check_datasets(cfg)
    _check_channel_order(cfg)
    _check_test_channel_order(cfg)
    device = str(cfg.train.get("device", "cuda"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"train.device: expected a device of this machine, found {device!r} but no GPU. "
            f"Add train.device=cpu to the command."
        )
    amp = cfg.train.amp
    if amp.enabled and amp.dtype not in ("float16", "bfloat16"):
        raise ValueError(f"train.amp.dtype: expected float16 or bfloat16, found {amp.dtype!r}")


def _check_datasets(cfg: DictConfig) -> None:
    for path, name in dataset_names(cfg.get("dataloader", {})):
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"dataloader.{path}: expected a registered dataset, found {name!r}."
                f"{_nearest(name, DatasetCatalog.list())} Register it in the config or with "
                f"detectron2.data.datasets.register_coco_instances."
            )


def class_lists(node, section: str) -> Iterator[tuple[str, list[str]]]:
    """Pairs of a place in the config and its ordered class names.

    Classes are named by registered datasets and by pseudo labels. Some datasets know their classes
    only after they are loaded.

    Args:
        node: a section of `dataloader`, such as `train`.
        section: its name.
    """
    for path, name in dataset_names(node):
        classes = MetadataCatalog.get(name).get("thing_classes", None)
        if classes is not None:
            yield f"{name!r} (dataloader.{section}.{path})", list(classes)
    for path, labels in nodes(node):
        target = resolve_target(labels) if "_target_" in labels else None
        if target is load_class_subset:
            yield f"classes (dataloader.{section}.{path})", list(labels.classes)
        if target is load_pseudo_labels:
            provenance = Path(labels.path).with_name("provenance.json")
            if provenance.exists():  # reading the labels reports a missing file
                made_from = json.loads(provenance.read_text()).get("made_from", {})
                if classes := made_from.get("settings", {}).get("classes"):
                    yield f"{labels.path} (dataloader.{section}.{path})", list(classes)


def _check_test_channel_order(cfg: DictConfig) -> None:
    loaded = OmegaConf.select(cfg, "dataloader.train.mapper.image_format")
    tested = OmegaConf.select(cfg, "dataloader.test.mapper.image_format")
    if None not in (loaded, tested) and loaded != tested:
        raise ValueError(
            f"dataloader.test.mapper.image_format: expected {loaded!r}, the channel order of the "
            f"training images (dataloader.train.mapper.image_format), found {tested!r}."
        )


def _check_channel_order(cfg: DictConfig) -> None:
    # With red and blue swapped, a teacher is only a little worse, so that the losses would not show
    # the mistake.
    loaded = OmegaConf.select(cfg, "dataloader.train.mapper.image_format")
    if "student" not in cfg.model or loaded is None:
        return
    student = cfg.model.student
    if not isinstance(student, DictConfig) and not cfg.model.get("input_format"):
        raise ValueError(
            f"model.input_format: expected the channel order of the images, since the student is "
            f"built from {student!r}, found none. Set model.input_format={loaded}."
        )
    own = student.get("input_format") if isinstance(student, DictConfig) else None
    expected = cfg.model.get("input_format") or own or "BGR"
    if loaded != expected:
        raise ValueError(
            f"dataloader.train.mapper.image_format: expected {expected!r}, the order that the "
            f"distiller assumes the images to have, found {loaded!r}. Set model.input_format."
        )


def nodes(cfg, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """All nodes of a config with their paths, from the top down."""
    if isinstance(cfg, DictConfig):
        yield path, cfg
        for key in map(str, cfg):
            yield from nodes(OmegaConf.select(cfg, key), f"{path}.{key}".lstrip("."))
    elif isinstance(cfg, ListConfig):
        for i, item in enumerate(cfg):
            yield from nodes(item, f"{path}[{i}]")


def _fields(node: DictConfig) -> list[str] | None:
    """Names of the arguments of a node's target; None if it accepts any name."""
    target = resolve_target(node)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD or p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return [p.name for p in parameters]


def _check_fields(path: str, node: DictConfig) -> None:
    fields = _fields(node)
    if fields is None:
        return
    target = resolve_target(node)
    for key in map(str, node):
        if key != "_target_" and key not in fields:
            raise ValueError(
                f"{path}.{key}: expected a field of {target.__name__} ({', '.join(fields)}), found "
                f"{key!r}.{_nearest(key, fields)}"
            )


def _check_key(cfg: DictConfig, key: str) -> None:
    parts = key.split(".")
    for i, part in enumerate(parts):
        parent_path = ".".join(parts[:i])
        parent = OmegaConf.select(cfg, parent_path) if parent_path else cfg
        if not isinstance(parent, DictConfig):
            return  # a list index; Detectron2 reports other mistakes
        if part in parent:
            continue
        fields = [str(key) for key in parent]
        if "_target_" in parent:
            accepted = _fields(parent)
            if accepted is None or part in accepted:
                return
            fields = accepted
        raise ValueError(
            f"override {key}: expected a field of {parent_path or 'the config'} "
            f"({', '.join(fields)}), found {part!r}.{_nearest(part, fields)}"
        )


def dataset_names(cfg) -> Iterator[tuple[str, str]]:
    """Pairs of a field that names a dataset, and the name; one pair for each name of a list."""
    for path, node in nodes(cfg):
        for key in ("names", "dataset_name"):
            value = node.get(key)
            if isinstance(value, (str, ListConfig, list, tuple)):
                for name in [value] if isinstance(value, str) else value:
                    yield f"{path}.{key}".lstrip("."), name


def _nearest(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""
