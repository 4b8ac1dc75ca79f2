"""Write a student in several formats, check each file, and put a model card beside them."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import LazyConfig
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save
from torch import Tensor

from ..files import check_new_folder, write_file, write_json
from ..loading import without_weights
from ..model_zoo.detector import student_node
from .card import describe
from .card_text import to_markdown
from .compare import Agreement, check_agreement, measure_agreement, shifted, sizes_of
from .onnx_detector import OnnxDetector
from .packages import check_exporter, require
from .quantize import measure_ap, write_int8
from .source import Source
from .tracing import check_supported, write_onnx, write_torchscript
from .yacs import YACS_FILE, CannotSayError, write_yacs

__all__ = ["COMPARED", "FORMATS", "export"]

FORMATS = ("detectron2", "yacs", "safetensors", "torchscript", "onnx")
COMPARED = ("yacs", "torchscript", "onnx")  # what is run on images


def export(
    source: Source,
    output: str | os.PathLike,
    images: Sequence[Path],
    *,
    formats: Sequence[str] | None = None,
    batch: int | None = None,
    calibration: Sequence[Path] = (),
    ap: float | None = None,
) -> dict[str, Any]:
    """Write a folder with the student alone.

    TorchScript files, ONNX files and the yacs config are run on the images, on two other sizes of
    the first one and on a black one, and must give the detections of the Detectron2 model. If one
    does not, there is no folder.

    Args:
        source: the student, on the CPU.
        output: the new folder.
        images: files of pictures; the student must detect something on one of them.
        formats: some of `FORMATS`. config.yaml is always written. Default: all, but the yacs config
            is left out where it cannot say what the detector is; "left_out" of the card has the
            reason.
        batch: number of images of one size that the traced files take at once. They have the axis
            of the batch, and say for each detection which image it is on. Default: one image,
            without that axis. They are also compared on moved copies of each image.
        calibration: files of pictures for an int8 copy of the ONNX file; none: no such copy. The
            AP of both is then measured on the config's test set.
        ap: box AP for the card, in percent; see `describe`.

    Returns:
        the content of model_card.json.

    Raises:
        FileExistsError: the folder exists and is not empty.
        ImportError: onnx or onnxruntime is missing, or PyTorch is too old for ONNX.
        ValueError: the detector cannot be traced, nothing is detected, a file is not equal, or
            "yacs" is among the given formats and cannot say what the detector is.
    """
    output = Path(output).resolve()  # where a link points to
    check_new_folder("--output", output)
    if output == Path.cwd():  # it is replaced when all files are written
        raise ValueError("--output: expected a folder that can be made, found the current one.")
    required = formats is not None
    formats = FORMATS if formats is None else formats
    traced = [x for x in formats if x in ("torchscript", "onnx")]
    if calibration and "onnx" not in formats:
        raise ValueError("--int8: expected onnx among --formats, found " + ", ".join(formats) + ".")
    if traced:
        check_supported(source.detector.model)
    if "onnx" in formats:
        require("onnx")
        require("onnxruntime")
        check_exporter()
    output.parent.mkdir(parents=True, exist_ok=True)
    # A temporary folder beside it, which gets its name when all files are in it.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        folder = Path(temporary, "files")
        folder.mkdir()
        _write_plain(source, folder, formats)
        checks, left_out = {}, {}
        if set(COMPARED) & set(formats):
            pictures = _detect_on(source, images, batch)
            if "yacs" in formats:
                try:
                    checks[YACS_FILE] = _write_yacs(source, folder, pictures)
                except CannotSayError as reason:
                    if required:
                        raise _not_yacs(reason) from reason
                    (folder / YACS_FILE).unlink(missing_ok=True)
                    left_out[YACS_FILE] = str(reason)
            checks |= _write_traced(source, folder, pictures, traced)
        accuracies = _write_int8(source, folder, calibration, batch) if calibration else {}
        card = describe(source, folder, batch=batch, given_ap=ap)
        for name, check in checks.items():
            card["files"][name]["check"] = {**check._asdict(), "images": len(pictures.images)}
        for name, accuracy in accuracies.items():
            card["files"][name]["AP"] = accuracy
        card["left_out"] = left_out
        write_json(folder / "model_card.json", card)
        write_file(folder / "README.md", to_markdown(card))
        os.replace(folder, output)
    return card


def _write_plain(source: Source, folder: Path, formats: Sequence[str]) -> None:
    """The student's config, and its tensors under the names of the plain detector."""
    cfg = copy.deepcopy(source.cfg)
    student = student_node(cfg)
    # Values may come from sections that are left out. The test images of Detectron2's common/data
    # have the format of the training images.
    for part in (student, cfg.dataloader.test, cfg.dataloader.get("evaluator"), cfg.train):
        if isinstance(part, DictConfig):
            OmegaConf.resolve(part)
    for key in [key for key in cfg if key not in ("model", "dataloader", "train")]:
        del cfg[key]
    for key in [key for key in cfg.dataloader if key not in ("test", "evaluator")]:
        del cfg.dataloader[key]
    cfg.model = copy.deepcopy(student)
    without_weights(cfg.model)
    plain = "detectron2" in formats or "yacs" in formats
    cfg.train.init_checkpoint = "model.pth" if plain else "model.safetensors"
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    tensors = {k: v.clone().contiguous() for k, v in source.detector.model.state_dict().items()}
    if plain:
        torch.save({"model": tensors}, folder / "model.pth")
    if "safetensors" in formats:
        write_file(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))


class _Pictures(NamedTuple):
    """What files are compared on.

    Attributes:
        images: (3, H, W), uint8. With a batch of N, each N of them have one size.
        expected: detections of the student for each image, in pixels of it.
        example: what a detector is traced on, (3, H, W) or (N, 3, H, W).
    """

    images: list[Tensor]
    expected: list[Instances]
    example: Tensor


def _detect_on(source: Source, pictures: Sequence[Path], batch: int | None) -> _Pictures:
    images = [source.detector.make_input(path)["image"] for path in pictures]
    images += [*sizes_of(images[0]), torch.zeros_like(images[0])]  # nothing to find in black
    images = [one for image in images for one in shifted(image, batch or 1)]
    expected = _detect_each(source.detector.model, images)
    # The tracer must see code that runs only where there are detections.
    most = max(range(len(images)), key=lambda i: len(expected[i]))
    if not len(expected[most]):
        raise ValueError(
            f"--images: expected a picture on which the student detects something, found no "
            f"detection on {len(pictures)}. Give other pictures, or check the weights."
        )
    if batch is None:
        return _Pictures(images, expected, images[most])
    return _Pictures(images, expected, torch.stack([images[most]] * batch))


def _write_yacs(source: Source, folder: Path, pictures: _Pictures) -> Agreement:
    """Write one of Detectron2's older configs; the result of its check."""
    built = write_yacs(source, folder)
    found = measure_agreement(pictures.expected, _detect_each(built, pictures.images))
    if found.differs:
        raise CannotSayError(
            f"{found.unmatched} detections differ, where the student has {found.detections}"
        )
    return found


def _not_yacs(reason: Exception) -> ValueError:
    return ValueError(
        f"--formats yacs: expected a detector that one of Detectron2's older configs can say "
        f"(RetinaNet, Faster or Cascade R-CNN with Detectron2's ResNet), found that {reason}. "
        f"Choose other formats. config.yaml is always written; it is a LazyConfig."
    )


def _write_traced(
    source: Source, folder: Path, pictures: _Pictures, formats: Sequence[str]
) -> dict[str, Agreement]:
    """Write TorchScript and ONNX; file name -> result of its check."""
    model, detector = source.detector.model, source.detector
    images, expected, example = pictures
    checks = {}
    if "torchscript" in formats:
        path = folder / "model.ts"
        write_torchscript(model, example, path)
        checks[path.name] = check_agreement(path.name, expected, _run_script(path, pictures))
    if "onnx" in formats:
        path = folder / "model.onnx"
        names = {"classes": detector.classes, "input_format": detector.input_format}
        write_onnx(model, example, path, names)
        found = OnnxDetector(path)([{"image": image} for image in images])
        checks[path.name] = check_agreement(path.name, expected, [x["instances"] for x in found])
    return checks


def _run_script(path: Path, pictures: _Pictures) -> list[Instances]:
    """Detections of a TorchScript file for each image, in pixels of it."""
    script = torch.jit.load(str(path))
    if pictures.example.dim() == 3:
        return [_instances(image, *script(image)) for image in pictures.images]
    found, batch = [], len(pictures.example)
    for start in range(0, len(pictures.images), batch):
        images = torch.stack(pictures.images[start : start + batch])
        *outputs, index = script(images)
        found += [_instances(x, *(y[index == i] for y in outputs)) for i, x in enumerate(images)]
    return found


def _instances(image: Tensor, boxes: Tensor, scores: Tensor, classes: Tensor) -> Instances:
    size = (image.shape[-2], image.shape[-1])
    return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


@torch.no_grad()
def _detect_each(model: Any, images: Sequence[Tensor]) -> list[Instances]:
    """What a detector finds in each image by itself, in pixels of the image."""
    return [model([{"image": image}])[0]["instances"] for image in images]


def _write_int8(
    source: Source, folder: Path, pictures: Sequence[Path], batch: int | None
) -> dict[str, float]:
    """Write the int8 file; name of the ONNX file -> its box AP in percent."""
    images = (source.detector.make_input(path)["image"] for path in pictures)
    if batch is not None:  # pictures have different sizes
        images = (torch.stack([image] * batch) for image in images)
    write_int8(folder / "model.onnx", images, folder / "model_int8.onnx")
    names = ("model.onnx", "model_int8.onnx")
    return {name: measure_ap(source.cfg, folder / name) for name in names}
