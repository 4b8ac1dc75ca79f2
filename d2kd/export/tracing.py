"""Trace a detector to a function of images, and write it as TorchScript or ONNX.

Shapes: N images of one size, R detections on all of them. Boxes are x1y1x2y2 in pixels of the image
that the function gets.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from .packages import check_exporter, require

__all__ = [
    "BATCH_OUTPUTS",
    "OUTPUTS",
    "check_supported",
    "make_traceable",
    "write_onnx",
    "write_torchscript",
]

OPSET = 19  # the first with DeformConv, which DDOD needs
OUTPUTS = ("boxes", "scores", "classes")
BATCH_OUTPUTS = (*OUTPUTS, "image_index")


def check_supported(model: nn.Module) -> None:
    """Raise a ValueError if the detector is of a kind that cannot be traced to boxes."""
    found = type(model).__name__
    if isinstance(model, DenseDetector):
        return
    if isinstance(model, GeneralizedRCNN):
        heads = model.roi_heads
        extra = [x for x in ("mask", "keypoint") if getattr(heads, f"{x}_on", False)]
        if not extra:
            return
        found += f" with a {' and a '.join(extra)} head"
    raise ValueError(
        f"export: expected a detector of boxes, which is a subclass of Detectron2's DenseDetector "
        f"(RetinaNet, FCOS, ATSS, GFL, DDOD, AutoAssign) or a GeneralizedRCNN without masks and "
        f"keypoints (Faster and Cascade R-CNN), found {found}. Choose only the formats "
        f"detectron2 and safetensors."
    )


def find_boxes(model: Any, inputs: list[dict[str, Tensor]]) -> tuple[Tensor, ...]:
    """Detect without resizing boxes, and without operations that ONNX does not have.

    Detectron2's postprocessing writes scaled boxes in place. The exporter of torch 2.14 crashes on
    that, and the scale is 1 here.

    Args:
        model: see `check_supported`.
        inputs: one dict with "image", (3, H, W), or (N, 3, H, W) for N images.

    Returns:
        (R, 4) boxes, (R,) scores and (R,) classes, as `model(inputs)` gives them. Of N images also
        (R,) indices of the image that a detection is on.
    """
    images = model.preprocess_image(inputs)
    batch = inputs[0]["image"].dim() == 4
    if batch:
        # Images of one size were padded as if they were one. Putting them together one by one, as
        # Detectron2 does, would copy in place.
        images = ImageList(images.tensor[0], images.image_sizes * len(inputs[0]["image"]))
    maps = model.backbone(images.tensor)
    if isinstance(model, GeneralizedRCNN):
        proposals, _ = model.proposal_generator(images, maps, None)
        found, _ = model.roi_heads(images, maps, proposals, None)
    else:
        features = [maps[level] for level in model.head_in_features]
        found = model.forward_inference(images, features, model.head(features))
    outputs = [_outputs_of(x, image) for image, x in enumerate(found)]
    if not batch:
        return outputs[0][:3]
    return tuple(torch.cat(x) for x in zip(*outputs, strict=True))


def _outputs_of(found: Instances, image: int) -> tuple[Tensor, ...]:
    boxes = found.pred_boxes
    boxes.clip(found.image_size)
    keep = boxes.nonempty()
    classes = found.pred_classes[keep]
    return boxes.tensor[keep], found.scores[keep], classes, torch.full_like(classes, image)


def make_traceable(model: nn.Module, image: Tensor) -> TracingAdapter:
    """A module that maps images to the outputs of `find_boxes`.

    Args:
        model: on the CPU, in evaluation mode.
        image: an example, uint8, on which the model detects something: (3, H, W), or (N, 3, H, W)
            for a module that takes N images of one size.

    Raises:
        ValueError: the detector is of another kind, see `check_supported`.
    """
    check_supported(model)
    # A new module is in training mode, and the exporter would put the model back into it.
    return TracingAdapter(model, [{"image": image}], find_boxes).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings about code of Detectron2 that depends on sizes. The files are compared."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def write_torchscript(model: nn.Module, image: Tensor, path: Path) -> None:
    """Trace a detector and save it for `torch.jit.load`. Arguments: see `make_traceable`."""
    with _quiet():
        torch.jit.trace(make_traceable(model, image), (image,), check_trace=False).save(str(path))


def write_onnx(
    model: nn.Module, image: Tensor, path: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Trace a detector and save it as ONNX. Height and width of the image are free.

    The input is "image", uint8 (3, height, width). The outputs are "boxes", float (R, 4), "scores",
    float (R,), and "classes", int64 (R,). A file for N images has the input (N, 3, height, width),
    and the output "image_index", int64 (R,), too.

    Args:
        model, image: see `make_traceable`.
        path: the new file.
        metadata: what is written into the file, name -> value; values become JSON.

    Raises:
        ImportError: the package onnx is missing, or PyTorch is too old.
        ValueError: the detector is of another kind, see `check_supported`.
    """
    onnx = require("onnx")
    check_exporter()
    batch = image.dim() == 4
    outputs = BATCH_OUTPUTS if batch else OUTPUTS
    free = {name: {0: "detections"} for name in outputs}
    with _quiet():
        _register_deformable_convolution()
        # The newer exporter (dynamo=True) cannot follow Detectron2's structures.
        torch.onnx.export(
            make_traceable(model, image),
            (image,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_axes={"image": {1 + batch: "height", 2 + batch: "width"}, **free},
        )
    written = onnx.load(str(path))
    onnx.helper.set_model_props(written, {k: json.dumps(v) for k, v in (metadata or {}).items()})
    onnx.checker.check_model(written)
    onnx.save(written, str(path))


def _register_deformable_convolution() -> None:
    """Tell the exporter that torchvision's deformable convolution is ONNX's DeformConv."""
    from torch.onnx import register_custom_op_symbolic, symbolic_helper

    @symbolic_helper.parse_args(*"vvvvviiiiiiiib")
    def deform_conv2d(
        g, x, weight, offset, mask, bias,
        stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, offset_groups, use_mask,
    ):  # fmt: skip
        return g.op(
            "DeformConv",
            *(x, weight, offset, bias),
            *([mask] if use_mask else []),
            dilations_i=[dilation_h, dilation_w],
            group_i=groups,
            kernel_shape_i=symbolic_helper._get_tensor_sizes(weight)[2:],
            offset_group_i=offset_groups,
            pads_i=[pad_h, pad_w, pad_h, pad_w],
            strides_i=[stride_h, stride_w],
        )

    register_custom_op_symbolic("torchvision::deform_conv2d", deform_conv2d, OPSET)
