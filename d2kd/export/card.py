"""model_card.json in the folder of exported files: what is known of the student."""

from __future__ import annotations

import inspect
import math
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import detectron2
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import __version__
from ..checkpoint import read_checkpoint
from ..checks.names import nodes
from ..files import sha256_of_file
from ..lazy import resolve_target
from ..metrics import read_metrics
from ..pseudo import load_pseudo_labels
from ..pseudo.provenance import read_made_from
from .source import Source, dataset_names
from .structure import to_plain

__all__ = ["describe", "metrics_of_run"]

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "safetensors")


def metrics_of_run(weights: Path) -> dict[str, float]:
    """The box metrics of a run's checkpoint in its metrics.json, such as {"AP": 31.2}.

    Args:
        weights: the checkpoint, in the folder of its run. The name says which step it is of, and
            whether it is the average of the student's weights.

    Returns:
        the metrics; empty if there are none of this step, or if the file has another name.
    """
    name = re.fullmatch(r"(model|student|student_ema)_(\d+|final|best)\.pth", weights.name)
    if not name:
        return {}
    prefix = "ema/bbox/" if name[1] == "student_ema" else "bbox/"
    step = int(name[2]) if name[2].isdigit() else None
    if name[2] == "best":
        step = read_checkpoint(str(weights)).get("iteration")
    last: dict[str, Any] = {}
    for line in read_metrics(weights.parent):
        found = {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}
        if step is None or line.get("iteration") == step:
            last = found or last
    return {k: v for k, v in last.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def describe(
    source: Source, folder: Path, *, batch: int | None = None, given_ap: float | None = None
) -> dict[str, Any]:
    """What is known of a student and of the exported files.

    Args:
        source: the student.
        folder: of the exported files.
        batch: number of images that the traced files take at once; None for one without that axis.
        given_ap: box AP in percent. Default: the zoo's, else from the run's metrics.json.

    Returns:
        the content of model_card.json, without the results of checks.
    """
    cfg, detector, entry = source.cfg, source.detector, source.entry
    trained_by = _config_of_run(source)
    test_data = dataset_names(cfg, "test")
    if given_ap is not None:
        metrics: dict[str, Any] = {"AP": given_ap, "from": "given", "data": test_data}
    elif entry:
        metrics = {"AP": entry.ap, "from": "d2kd's model zoo", "data": [entry.data]}
    elif "AP" in (found := metrics_of_run(Path(source.weights))):
        metrics = {**found, "from": "metrics.json of the run", "data": test_data}
    else:
        metrics = {}
    return {
        "detector": type(detector.model).__name__,
        "parameters": sum(x.numel() for x in detector.model.parameters()),
        "classes": list(detector.classes),
        "metrics": metrics,
        "teacher": _teacher(trained_by),
        "methods": _methods(trained_by),
        "labels_by_teachers": [entry.labels] if entry and entry.labels else _labels(trained_by),
        "training_data": dataset_names(cfg, "train"),
        "input": {
            "channels": detector.input_format,
            "dtype": "uint8",
            "shape": [*([batch] if batch else []), 3, "height", "width"],
            "resized_for_evaluation": [
                {"class": _target(x), **{k: to_plain(v) for k, v in x.items() if k != "_target_"}}
                for x in cfg.dataloader.test.mapper.augmentations
            ],
        },
        "config": _path(source.name),
        "checkpoint": {
            "file": Path(source.weights).name,
            "sha256": sha256_of_file(source.weights),
        },
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
            for path in sorted(folder.iterdir())
        },
        "versions": {
            "d2kd": __version__,
            "detectron2": detectron2.__version__,
            **_versions(),
        },
    }


class _PlainLoader(yaml.SafeLoader):
    """Reads the texts and numbers of a LazyConfig. Objects in it become None: none is made."""


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def _config_of_run(source: Source) -> DictConfig:
    """The config that says who taught the student.

    A student can be loaded by its own config, which has no teacher. The run has kept the config of
    the training in the folder of the checkpoint.
    """
    path = Path(source.weights).with_name("config.yaml")
    if source.entry or "teacher" in source.cfg.model or not path.is_file():
        return source.cfg
    try:
        run = OmegaConf.create(yaml.load(path.read_text(), _PlainLoader))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return source.cfg
    return run if isinstance(run, DictConfig) and {"model", "dataloader"} <= {*run} else source.cfg


def _path(value: Any) -> Any:
    """A path without the folders of this machine: relative, or its last two parts."""
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    here, path = Path.cwd(), Path(value)
    return str(path.relative_to(here) if path.is_relative_to(here) else Path(*path.parts[-2:]))


def _target(node: Any) -> str:
    target = node.get("_target_") if isinstance(node, DictConfig) else node
    return target if isinstance(target, str) else getattr(target, "__qualname__", str(target))


def _teacher(cfg: DictConfig) -> dict[str, Any] | None:
    node = cfg.model.get("teacher")
    if not isinstance(node, DictConfig):
        return None
    return {"model": _path(_target(node.get("model"))), "weights": _path(node.get("weights"))}


def _labels(cfg: DictConfig) -> list[str]:
    """Files of labels by teachers, with the teachers and the digests of their weights."""
    files = []
    for _, node in nodes(cfg.dataloader.get("train")):
        if _target(node).rpartition(".")[2] == load_pseudo_labels.__name__:
            teachers = read_made_from(node.path).get("teachers", {})
            names = (f"{name} (sha256 {x['weights'][:12]})" for name, x in teachers.items())
            by = ", ".join(names) or "teachers that are not known"
            files.append(f"{_path(node.path)} by {by}")
    return files


def _methods(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    nodes = cfg.model.get("methods") or {}
    return {
        name: {"class": _target(node), **_strength(node), **_uncertainty(node)}
        for name, node in nodes.items()
        if isinstance(node, DictConfig)
    }


def _uncertainty(node: DictConfig) -> dict[str, Any]:
    """UET, where the method has it."""
    used = node.get("uncertainty")
    return {"uncertainty": _target(used)} if used else {}


def _strength(node: DictConfig) -> dict[str, Any]:
    """`balance`, which replaces the weight, or the weight; and the schedule, where there is one."""
    strength = {"balance": node.balance} if node.get("balance") else {"weight": _weight(node)}
    return {**strength, **({"schedule": _target(node.schedule)} if node.get("schedule") else {})}


def _weight(node: DictConfig) -> Any:
    """The weight of a method's node, or the default of its class, such as 6 for PKD."""
    if "weight" in node:
        return node.weight
    # The user has not named the run's config, so it may not import modules.
    if isinstance(node._target_, str) and not node._target_.startswith("d2kd."):
        return "not known"
    return inspect.signature(resolve_target(node)).parameters["weight"].default


def _versions() -> dict[str, str]:
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
