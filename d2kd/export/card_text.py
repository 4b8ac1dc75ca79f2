"""README.md of exported files: the model card for people, with the code that runs each file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .compare import BOX_TOLERANCE, SCORE_TOLERANCE
from .tracing import BATCH_OUTPUTS, OUTPUTS
from .yacs import YACS_FILE

__all__ = ["to_markdown"]

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
