"""The model card beside exported files: model_card.json, and README.md for people."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from .. import __version__
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

CALLS = {
    "model.onnx": """\
session = onnxruntime.InferenceSession("{file}")
image = cv2.imread("image.jpg"){order}.transpose(2, 0, 1)
{outputs} = session.run(None, {{"image": {image}}})
""",
    "model.ts": """\
import torchvision  # the file needs its operators
image = torch.from_numpy(cv2.imread("image.jpg"){order}.transpose(2, 0, 1).copy())
{outputs} = torch.jit.load("model.ts")({image})
""",
    "model.safetensors": """\
detector = d2kd.model_zoo.Detector("config.yaml", "model.safetensors")
found = detector("image.jpg")  # resizes, and gives boxes in pixels of the picture
boxes, scores, classes = found.pred_boxes, found.scores, found.pred_classes
""",
    YACS_FILE: """\
cfg = detectron2.config.get_cfg()
cfg.merge_from_file("{file}")  # the weights are in model.pth of the current folder
cfg.MODEL.DEVICE = "cpu"  # leave this out with a GPU
predictor = detectron2.engine.DefaultPredictor(cfg)
found = predictor(cv2.imread("image.jpg"))["instances"]  # resizes, too
boxes, scores, classes = found.pred_boxes, found.scores, found.pred_classes
""",
}


def metrics_of_run(folder: Path) -> dict[str, float]:
    """The last box metrics in a run's metrics.json, such as {"AP": 31.2}; empty if there are none.

    Args:
        folder: of the run, where the checkpoint is.
    """
    last: dict[str, Any] = {}
    for line in read_metrics(folder):
        found = {k.removeprefix("bbox/"): v for k, v in line.items() if k.startswith("bbox/")}
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
    test_data = dataset_names(cfg, "test")
    if given_ap is not None:
        metrics: dict[str, Any] = {"AP": given_ap, "from": "given", "data": test_data}
    elif entry:
        metrics = {"AP": entry.ap, "from": "d2kd's model zoo", "data": [entry.data]}
    elif found := metrics_of_run(Path(source.weights).parent):
        metrics = {**found, "from": "metrics.json of the run", "data": test_data}
    else:
        metrics = {}
    return {
        "detector": type(detector.model).__name__,
        "parameters": sum(x.numel() for x in detector.model.parameters()),
        "classes": list(detector.classes),
        "metrics": metrics,
        "teacher": _teacher(cfg),
        "methods": _methods(cfg),
        "labels_by_teachers": [entry.labels] if entry and entry.labels else _labels(cfg),
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
        "config": source.name,
        "checkpoint": {
            "file": Path(source.weights).name,
            "sha256": sha256_of_file(source.weights),
        },
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
            for path in sorted(folder.iterdir())
        },
        "versions": {"d2kd": __version__, **_versions()},
    }


def _target(node: Any) -> str:
    target = node.get("_target_") if isinstance(node, DictConfig) else node
    return target if isinstance(target, str) else getattr(target, "__qualname__", str(target))


def _teacher(cfg: DictConfig) -> dict[str, Any] | None:
    node = cfg.model.get("teacher")
    if not isinstance(node, DictConfig):
        return None
    return {"model": _target(node.get("model")), "weights": node.get("weights")}


def _labels(cfg: DictConfig) -> list[str]:
    """Files of labels by teachers, with the teachers and the digests of their weights."""
    files = []
    for _, node in nodes(cfg.dataloader.get("train")):
        if "_target_" in node and resolve_target(node) is load_pseudo_labels:
            teachers = read_made_from(node.path).get("teachers", {})
            names = (f"{name} (sha256 {x['weights'][:12]})" for name, x in teachers.items())
            files.append(f"{node.path} by {', '.join(names) or 'teachers that are not known'}")
    return files


def _methods(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    nodes = cfg.model.get("methods") or {}
    return {
        name: {"class": _target(node), "weight": _weight(node)}
        for name, node in nodes.items()
        if isinstance(node, DictConfig)
    }


def _weight(node: DictConfig) -> Any:
    """The weight of a method's node, or the default of its class, such as 6 for PKD."""
    if "weight" in node:
        return node.weight
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
    order = "[..., ::-1]" if card["input"]["channels"] == "RGB" else ""
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
    for name, call in CALLS.items():
        if name in card["files"]:
            image = _stacked(name, *batch)
            code = call.format(file=name, order=order, outputs=outputs, image=image)
            lines += [f"`{name}`:", "", "```python", code.rstrip(), "```", ""]
    return "\n".join(lines)


def _input(batch: int | None = None) -> str:
    if batch is None:
        return "One image for each call: uint8, (3, height, width)"
    return f"{batch} images of one size for each call: uint8, ({batch}, 3, height, width)"


def _stacked(file: str, batch: int | None = None) -> str:
    """The expression of what a file takes, where `image` is one image."""
    package = "numpy" if file.endswith(".onnx") else "torch"
    return "image" if batch is None else f"{package}.stack([image] * {batch})"


def _accuracy(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return "not known"
    data = f" on {', '.join(metrics['data'])}" if metrics["data"] else ""
    return f"{metrics['AP']:.1f}{data} ({metrics['from']})"


def _teacher_cell(teacher: Mapping[str, Any] | None) -> str:
    return f"`{teacher['model']}`, `{teacher['weights']}`" if teacher else "none in the config"


def _methods_cell(methods: Mapping[str, Mapping[str, Any]]) -> str:
    used = (f"{x['class']} (weight {x['weight']})" for x in methods.values())
    return ", ".join(used) or "none in the config"


def _check_cell(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return ""
    differ = f", {check['unmatched']} differ" if check["unmatched"] else ""
    return (
        f"{check['detections']} detections on {check['images']} images{differ}; largest difference "
        f"{check['box']:.1e} pixels, {check['score']:.1e} in scores"
    )
