"""Checks of a LazyConfig that find mistakes before the first iteration."""

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

from .loading import resolve_target
from .pseudo.coco import load_pseudo_labels

__all__ = ["check_config", "load_config"]

# Of `train`, beside the fields of Detectron2's configs/common/train.py.
TRAIN_FIELDS = dict(
    seed=-1,
    accumulate=1,
    clip_grad_norm=0.0,
    teacher_check=dict(images=0, min_ap=0.0),
)


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a LazyConfig, fill in the fields of `train` that d2kd adds, and apply overrides.

    Raises:
        ValueError: an override names a field that is not there.
    """
    cfg = LazyConfig.load(path)
    for section in ("model", "dataloader", "train"):
        if section not in cfg:
            raise ValueError(f"{path}: expected a section {section!r}, found {', '.join(cfg)}")
    for key, value in TRAIN_FIELDS.items():
        cfg.train.setdefault(key, value)
    for key, value in dict(enabled=False, dtype="float16").items():
        cfg.train.setdefault("amp", {}).setdefault(key, value)
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        _check_key(cfg, key)
    return LazyConfig.apply_overrides(cfg, list(overrides))


def check_config(cfg: DictConfig) -> None:
    """Find unknown fields, unknown or empty data sets, data sets with more classes than the model
    or that number them differently, other channel orders and missing devices.

    Raises:
        ValueError: with the field, what was expected, what was found and the nearest names.
    """
    for path, node in _nodes(cfg):
        if "_target_" in node:
            _check_fields(path, node)
    for path, names in _dataset_names(cfg.get("dataloader", {})):
        for name in [names] if isinstance(names, str) else names:
            if name not in DatasetCatalog.list():
                raise ValueError(
                    f"dataloader.{path}: expected a registered dataset, found {name!r}."
                    f"{_nearest(name, DatasetCatalog.list())} Register it in the config or with "
                    f"detectron2.data.datasets.register_coco_instances."
                )
    # The training set is read before the first step anyway; the test set only after an hour.
    for path, names in _dataset_names(cfg.get("dataloader", {}).get("test", {})):
        for name in [names] if isinstance(names, str) else names:
            try:
                images = DatasetCatalog.get(name)
            except FileNotFoundError as e:
                raise ValueError(
                    f"dataloader.test.{path}: expected the files of {name!r}, found no "
                    f"{e.filename}. Detectron2's data sets lie in $DETECTRON2_DATASETS, by default "
                    f"./datasets."
                ) from e
            if not images:
                raise ValueError(f"dataloader.test.{path}: expected images, {name!r} has none.")
    _check_classes(cfg)
    _check_channel_order(cfg)
    device = str(cfg.train.get("device", "cuda"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"train.device: expected a device of this machine, found {device!r} but no GPU. "
            f"Add train.device=cpu to the command."
        )
    amp = cfg.train.amp
    if amp.enabled and amp.dtype not in ("float16", "bfloat16"):
        raise ValueError(f"train.amp.dtype: expected float16 or bfloat16, found {amp.dtype!r}")


def _check_classes(cfg: DictConfig) -> None:
    # On a GPU, a class too many stops the first step with an assertion that names nothing.
    model = cfg.model.get("student", cfg.model)
    lists = list(_class_lists(cfg.get("dataloader", {})))
    for path in ("num_classes", "roi_heads.num_classes"):
        found = OmegaConf.select(model, path) if isinstance(model, DictConfig) else None
        for where, classes in lists:
            if found is not None and len(classes) > found:
                raise ValueError(
                    f"{path}: expected at least the {len(classes)} classes of {where}, found "
                    f"{found}."
                )
    # A name in two places of two lists: what one teaches or asks for is another class to the other.
    known: dict[str, tuple[int, str]] = {}
    for where, classes in lists:
        for i, name in enumerate(classes):
            before, elsewhere = known.setdefault(str(name).casefold(), (i, where))
            if i != before:
                raise ValueError(
                    f"classes: expected one order for all data, found {name!r} as number {before} "
                    f"of {elsewhere} and as number {i} of {where}. Register one of them with the "
                    f"classes of the other, or label with them (labels.classes)."
                )


def _class_lists(cfg) -> Iterator[tuple[str, list[str]]]:
    """Where classes are named, and in which order: by registered sets, and by teachers' labels."""
    for path, names in _dataset_names(cfg):
        for name in [names] if isinstance(names, str) else names:
            # Some sets know their classes only once they are loaded.
            classes = MetadataCatalog.get(name).get("thing_classes", None)
            if classes is not None:
                yield f"{name!r} (dataloader.{path})", list(classes)
    for path, node in _nodes(cfg):
        if "_target_" in node and resolve_target(node) is load_pseudo_labels:
            beside = Path(node.path).with_name("provenance.json")
            if beside.exists():  # what is missing is said when the labels are read
                said = json.loads(beside.read_text()).get("made_from", {}).get("settings", {})
                if classes := said.get("classes"):
                    yield f"{node.path} (dataloader.{path})", list(classes)


def _check_channel_order(cfg: DictConfig) -> None:
    # A teacher that is fed blue for red is only somewhat worse: nobody would notice.
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
            f"distiller believes the images to have, found {loaded!r}. Set model.input_format."
        )


def _nodes(cfg, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    if isinstance(cfg, DictConfig):
        yield path, cfg
        for key in cfg:
            yield from _nodes(OmegaConf.select(cfg, str(key)), f"{path}.{key}".lstrip("."))
    elif isinstance(cfg, ListConfig):
        for i, item in enumerate(cfg):
            yield from _nodes(item, f"{path}[{i}]")


def _fields(node: DictConfig) -> list[str] | None:
    """Names of the arguments of a node's target; None where it takes any."""
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
    for key in node:
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
            return  # a list index, or Detectron2's own message for a value
        if part in parent:
            continue
        fields = list(parent)
        if "_target_" in parent:
            fields = _fields(parent)
            if fields is None or part in fields:
                return
        raise ValueError(
            f"override {key}: expected a field of {parent_path or 'the config'} "
            f"({', '.join(str(f) for f in fields)}), found {part!r}.{_nearest(part, fields)}"
        )


def _dataset_names(cfg) -> Iterator[tuple[str, str | Sequence[str]]]:
    for path, node in _nodes(cfg):
        for key in ("names", "dataset_name"):
            value = node.get(key) if isinstance(node, DictConfig) else None
            if isinstance(value, (str, ListConfig, list, tuple)):
                yield f"{path}.{key}".lstrip("."), value


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""
