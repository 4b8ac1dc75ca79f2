"""Write a student in several formats, check each file, and put a model card beside them."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig
from detectron2.structures import Boxes, Instances
from safetensors.torch import save
from torch import Tensor

from ..files import check_new_folder, write_file, write_json
from ..loading import without_weights
from ..model_zoo.detector import student_node
from .card import describe, to_markdown
from .compare import check_agreement, sizes_of
from .onnx_detector import OnnxDetector
from .packages import require
from .quantize import measure_ap, write_int8
from .source import Source
from .tracing import check_supported, write_onnx, write_torchscript

__all__ = ["FORMATS", "export"]

FORMATS = ("detectron2", "safetensors", "torchscript", "onnx")


def export(
    source: Source,
    output: str | os.PathLike,
    images: Sequence[Path],
    *,
    formats: Sequence[str] = FORMATS,
    calibration: Sequence[Path] = (),
    ap: float | None = None,
) -> dict[str, Any]:
    """Write a folder with the student alone.

    TorchScript and ONNX files are run on the images and on two other sizes of the first one, and
    must give the detections of the Detectron2 model. If one does not, there is no folder.

    Args:
        source: the student, on the CPU.
        output: the new folder.
        images: files of pictures; the student must detect something on one of them.
        formats: some of `FORMATS`. config.yaml is always written.
        calibration: files of pictures for an int8 copy of the ONNX file; none: no such copy. The
            AP of both is then measured on the config's test set.
        ap: box AP for the card, in percent; see `describe`.

    Returns:
        the content of model_card.json.

    Raises:
        FileExistsError: the folder exists and is not empty.
        ImportError: onnx or onnxruntime is missing.
        ValueError: the detector cannot be traced, nothing is detected, or a file is not equal.
    """
    output = Path(output)
    check_new_folder("--output", output)
    traced = [x for x in formats if x in ("torchscript", "onnx")]
    if calibration and "onnx" not in formats:
        raise ValueError("--int8: expected onnx among --formats, found " + ", ".join(formats) + ".")
    if traced:
        check_supported(source.detector.model)
    if "onnx" in formats:
        require("onnx")
        require("onnxruntime")
    output.parent.mkdir(parents=True, exist_ok=True)
    # A temporary folder beside it, which gets its name when all files are in it.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        folder = Path(temporary, "files")
        folder.mkdir()
        _write_plain(source, folder, formats)
        checks = _write_traced(source, folder, images, traced) if traced else {}
        accuracies = _write_int8(source, folder, calibration) if calibration else {}
        card = describe(source, folder, given_ap=ap)
        for name, check in checks.items():
            card["files"][name]["check"] = check
        for name, accuracy in accuracies.items():
            card["files"][name]["AP"] = accuracy
        write_json(folder / "model_card.json", card)
        write_file(folder / "README.md", to_markdown(card))
        os.replace(folder, output)
    return card


def _write_plain(source: Source, folder: Path, formats: Sequence[str]) -> None:
    """The student's config, and its tensors under the names of the plain detector."""
    cfg = copy.deepcopy(source.cfg)
    for key in [key for key in cfg if key not in ("model", "dataloader", "train")]:
        del cfg[key]
    for key in [key for key in cfg.dataloader if key not in ("test", "evaluator")]:
        del cfg.dataloader[key]
    cfg.model = copy.deepcopy(student_node(source.cfg))
    without_weights(cfg.model)
    plain = "detectron2" in formats
    cfg.train.init_checkpoint = "model.pth" if plain else "model.safetensors"
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    tensors = {k: v.clone().contiguous() for k, v in source.detector.model.state_dict().items()}
    if plain:
        torch.save({"model": tensors}, folder / "model.pth")
    if "safetensors" in formats:
        write_file(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))


def _write_traced(
    source: Source, folder: Path, pictures: Sequence[Path], formats: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Write TorchScript and ONNX; file name -> result of its check."""
    model, detector = source.detector.model, source.detector
    images = [detector.make_input(path)["image"] for path in pictures]
    images += sizes_of(images[0])
    expected = [_detect(model, image) for image in images]
    # The tracer must see code that runs only where there are detections.
    most = max(range(len(images)), key=lambda i: len(expected[i]))
    if not len(expected[most]):
        raise ValueError(
            f"--images: expected a picture on which the student detects something, found no "
            f"detection on {len(pictures)}. Give other pictures, or check the weights."
        )
    checks = {}
    if "torchscript" in formats:
        path = folder / "model.ts"
        write_torchscript(model, images[most], path)
        script = torch.jit.load(str(path))

        def run_script(image: Tensor) -> Instances:
            boxes, scores, classes = script(image)
            return _instances(image, boxes, scores, classes)

        checks[path.name] = check_agreement(path.name, expected, run_script, images)
    if "onnx" in formats:
        path = folder / "model.onnx"
        names = {"classes": detector.classes, "input_format": detector.input_format}
        write_onnx(model, images[most], path, names)
        onnx = OnnxDetector(path)
        checks[path.name] = check_agreement(
            path.name, expected, lambda image: _detect(onnx, image), images
        )
    return {name: {**x._asdict(), "images": len(images)} for name, x in checks.items()}


def _instances(image: Tensor, boxes: Tensor, scores: Tensor, classes: Tensor) -> Instances:
    size = (image.shape[-2], image.shape[-1])
    return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


@torch.no_grad()
def _detect(model: Any, image: Tensor) -> Instances:
    """What a detector in Detectron2's interface finds, in pixels of the image."""
    return model([{"image": image}])[0]["instances"]


def _write_int8(source: Source, folder: Path, pictures: Sequence[Path]) -> dict[str, float]:
    """Write the int8 file; name of the ONNX file -> its box AP in percent."""
    images = (source.detector.make_input(path)["image"] for path in pictures)
    write_int8(folder / "model.onnx", images, folder / "model_int8.onnx")
    names = ("model.onnx", "model_int8.onnx")
    return {name: measure_ap(source.cfg, folder / name) for name in names}
