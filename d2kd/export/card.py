"""The model card beside exported files: model_card.json, and README.md for people."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
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
from .compare import BOX_TOLERANCE, SCORE_TOLERANCE
from .source import Source, dataset_names
from .structure import to_plain
from .tracing import BATCH_OUTPUTS, OUTPUTS
from .yacs import YACS_FILE

__all__ = ["describe", "metrics_of_run", "to_markdown"]

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "safetensors")

PICTURE = """\
import numpy
from PIL import Image, ImageOps

picture = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")
{resize}
image = numpy.ascontiguousarray(numpy.asarray(picture){order}.transpose(2, 0, 1))
"""
RESIZE = """\
scale = min({short} / min(picture.size), {most} / max(picture.size))
picture = picture.resize([int(x * scale + 0.5) for x in picture.size], Image.BILINEAR)"""

CALLS = {
    "model.onnx": """\
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
{outputs} = session.run(None, {{"image": {image}}})
boxes = boxes / scale  # pixels of image.jpg
""",
    "model.ts": """\
import torch
import torchvision  # the file needs its operators

{outputs} = torch.jit.load("{file}")(torch.from_numpy({image}))
boxes = boxes / scale  # pixels of image.jpg
""",
    "model.pth": """\
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate

detector = instantiate(LazyConfig.load("config.yaml").model).eval()
DetectionCheckpointer(detector).load("{file}")
with torch.no_grad():
    found = detector([{{"image": torch.from_numpy(image)}}])[0]["instances"]
boxes, scores, classes = found.pred_boxes.tensor / scale, found.scores, found.pred_classes
""",
    "model.safetensors": """\
from d2kd.model_zoo import Detector

found = Detector("config.yaml", "{file}")("image.jpg")  # resizes, and scales boxes back
boxes, scores, classes = found.pred_boxes.tensor, found.scores, found.pred_classes
""",
    YACS_FILE: """\
import cv2
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

cfg = get_cfg()
cfg.merge_from_file("{file}")  # the weights are in model.pth of the current folder
cfg.MODEL.DEVICE = "cpu"  # leave this out with a GPU
found = DefaultPredictor(cfg)(cv2.imread("image.jpg"))["instances"]  # resizes, too
boxes, scores, classes = found.pred_boxes.tensor, found.scores, found.pred_classes
""",
}


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
    the training beside the checkpoint.
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
    # Nobody has named the run's config, so it may not import modules.
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


def to_markdown(card: Mapping[str, Any]) -> str:
    """README.md of a folder of exported files. `card` is what `describe` gives, with checks."""
    order = "[..., ::-1]" if card["input"]["channels"] == "BGR" else ""
    count = len(card["classes"])
    *batch, _, _, _ = card["input"]["shape"]
    outputs = ", ".join(BATCH_OUTPUTS if batch else OUTPUTS)
    lines = [
        f"# {card['detector']} with {count} class{'' if count == 1 else 'es'}",
        "",
        f"Config `{card['config']}`, {card['parameters'] / 1e6:.2f} M parameters. "
        f"Classes, in order: {', '.join(card['classes'])}.",
        "",
        "| | |",
        "|---|---|",
        f"| box AP | {_accuracy(card['metrics'])} |",
        f"| training data | {', '.join(card['training_data']) or 'not named in the config'} |",
        f"| teacher | {_teacher_cell(card['teacher'])} |",
        f"| labels by teachers | {', '.join(card['labels_by_teachers']) or 'none in the config'} |",
        f"| methods | {_methods_cell(card['methods'])} |",
        f"| checkpoint | `{card['checkpoint']['file']}`, sha256 "
        f"`{card['checkpoint']['sha256'][:12]}` |",
        f"| made with | {', '.join(f'{k} {v}' for k, v in card['versions'].items())} |",
        "",
        "## Files",
        "",
        "| file | bytes | check against the Detectron2 model | box AP | sha256 |",
        "|---|---|---|---|---|",
        *(
            f"| `{name}` | {x['bytes']:,} | {_check_cell(x.get('check'))} | "
            f"{format(x['AP'], '.1f') if 'AP' in x else ''} | `{x['sha256'][:12]}` |"
            for name, x in card["files"].items()
        ),
        "",
        f"A check compares all detections: the same class, boxes within {BOX_TOLERANCE} pixels, "
        f"scores within {SCORE_TOLERANCE}.",
        "",
        *(f"No `{name}`: {reason}.\n" for name, reason in card.get("left_out", {}).items()),
        "## Input and output",
        "",
        f"{_input(*batch)}, channels {card['input']['channels']}. Height and width are free. The "
        f"files do not resize; `resized_for_evaluation` in `model_card.json` says which size gives "
        f"the AP above.",
        "",
        "`boxes` (R, 4) are x1, y1, x2, y2 in pixels of the given image, `scores` (R,) are in "
        "[0, 1], and `classes` (R,) count from 0. "
        + (
            "`image_index` (R,) is the image of each, from 0."
            if batch
            else "The best detections come first."
        ),
        "",
    ]
    resize = _resize(card["input"]["resized_for_evaluation"])
    picture = PICTURE.format(resize=resize, order=order)
    codes = {"A picture, resized as for the AP above": picture}
    for name, call in CALLS.items():
        if name in card["files"]:
            code = call.format(file=name, outputs=outputs, image=_stacked(*batch))
            codes[f"`{name}`"] = code
    for title, code in codes.items():
        lines += [f"{title}:", "", "```python", code.rstrip(), "```", ""]
    return "\n".join(lines)


def _input(batch: int | None = None) -> str:
    if batch is None:
        return "One image for each call: uint8, (3, height, width)"
    return f"{batch} images of one size for each call: uint8, ({batch}, 3, height, width)"


def _resize(augmentations: Sequence[Mapping[str, Any]]) -> str:
    """The lines that resize a picture, where they are Detectron2's usual ones."""
    if not augmentations:
        return "scale = 1.0"
    short, most = (augmentations[0].get(key) for key in ("short_edge_length", "max_size"))
    if len(augmentations) > 1 or not isinstance(short, int) or not isinstance(most, int):
        return "scale = 1.0  # resize the picture here"
    return RESIZE.format(short=short, most=most)


def _stacked(batch: int | None = None) -> str:
    """The expression of what a file takes, where `image` is one image."""
    return "image" if batch is None else f"numpy.stack([image] * {batch})"


def _accuracy(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return "not known"
    data = f" on {', '.join(metrics['data'])}" if metrics["data"] else ""
    return f"{metrics['AP']:.1f}{data} ({metrics['from']})"


def _teacher_cell(teacher: Mapping[str, Any] | None) -> str:
    return f"`{teacher['model']}`, `{teacher['weights']}`" if teacher else "none in the config"


def _methods_cell(methods: Mapping[str, Mapping[str, Any]]) -> str:
    used = []
    for method in methods.values():
        details = ", ".join(f"{k} {v}" for k, v in method.items() if k != "class")
        used.append(f"{method['class']} ({details})")
    return ", ".join(used) or "none in the config"


def _check_cell(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return ""
    differ = f", {check['unmatched']} differ" if check["unmatched"] else ""
    return (
        f"{check['detections']} detections on {check['images']} images{differ}; largest difference "
        f"{check['box']:.1e} pixels, {check['score']:.1e} in scores"
    )
