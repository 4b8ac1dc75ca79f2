"""Small detectors and batches for tests; a step takes milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import FCOS, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances

if TYPE_CHECKING:
    from d2kd import Targets

STRIDES = (8, 16, 32, 64, 128)


def pyramid(width: int = 4, channels: int = 8, norm: str = "BN") -> FPN:
    """A pyramid of p3 to p7 on a ResNet with four basic blocks."""
    # Each block changes the width. A block that does not has no projection and cannot change the
    # stride.
    outs = (width, 2 * width, 4 * width, 8 * width)
    stages = [
        ResNet.make_stage(
            BasicBlock, 1, stride_per_block=[stride], in_channels=i, out_channels=o, norm=norm
        )
        for stride, i, o in zip((1, 2, 2, 2), (width, *outs[:3]), outs, strict=True)
    ]
    names = ["res3", "res4", "res5"]
    bottom_up = ResNet(BasicStem(out_channels=width, norm=norm), stages, out_features=names)
    top = LastLevelP6P7(8 * width, channels)
    return FPN(bottom_up, names, channels, top_block=top)


def retinanet(
    width: int = 4,
    channels: int = 8,
    num_classes: int = 3,
    input_format: str = "BGR",
    norm: str = "BN",
    **fields,
) -> RetinaNet:
    return RetinaNet(
        **{
            "backbone": pyramid(width, channels, norm),
            "head": RetinaNetHead(
                input_shape=[ShapeSpec(channels=channels)] * 5,
                num_classes=num_classes,
                conv_dims=[channels],
                num_anchors=1,
            ),
            "anchor_generator": DefaultAnchorGenerator(
                sizes=[[4 * s] for s in STRIDES], aspect_ratios=[1.0], strides=STRIDES
            ),
            "box2box_transform": Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
            "anchor_matcher": Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
            "num_classes": num_classes,
            "head_in_features": ["p3", "p4", "p5", "p6", "p7"],
            "pixel_mean": [110.0, 115.0, 120.0],
            "pixel_std": [58.0, 57.0, 56.0],
            "input_format": input_format,
            **fields,
        }
    )


def fcos(width: int = 4, channels: int = 8, num_classes: int = 3) -> FCOS:
    return FCOS(
        backbone=pyramid(width, channels),
        head=FCOSHead(
            input_shape=[ShapeSpec(channels=channels)] * 5,
            num_classes=num_classes,
            conv_dims=[channels],
        ),
        num_classes=num_classes,
        pixel_mean=[103.53, 116.28, 123.675],
        pixel_std=[1.0, 1.0, 1.0],
    )


def point(name: str, width: int = 4, channels: int = 8, num_classes: int = 3, **fields):
    """Build a detector of `d2kd.detectors` by its class name."""
    from d2kd import detectors

    head = dict(
        input_shape=[ShapeSpec(channels=channels)] * 5,
        num_classes=num_classes,
        conv_dims=[channels] * 2,
        norm="LN",
    )
    if name == "GFL":
        head.update(box_channels=68, quality=False)
    elif name == "AutoAssign":
        head.update(conv_bias=True, prior_prob=0.02, box_bias=4.0)
    kind = detectors.DDODHead if name == "DDOD" else detectors.PointHead
    return getattr(detectors, name)(
        **{
            "backbone": pyramid(width, channels),
            "head": kind(**head),
            "num_classes": num_classes,
            "pixel_mean": [110.0, 115.0, 120.0],
            "pixel_std": [58.0, 57.0, 56.0],
            **fields,
        }
    )


def rcnn(mask: bool = False, num_classes: int = 3, channels: int = 8):
    """Faster or Mask R-CNN by Detectron2's config, with ResNet-18 and a narrow neck, p2 to p6."""
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    bottom_up = model.backbone.bottom_up
    bottom_up.stages.depth = 18
    del bottom_up.stages.stride_in_1x1  # BasicBlock has none
    bottom_up.stages.norm = bottom_up.stem.norm = "BN"
    model.backbone.in_features = ["res2", "res3", "res4", "res5"]
    model.backbone.out_channels = channels
    model.proposal_generator.head.in_channels = channels
    for head in (model.roi_heads.box_head, model.roi_heads.mask_head):
        head.input_shape.channels = channels
    model.roi_heads.box_head.fc_dims = [16]
    model.roi_heads.box_predictor.input_shape.channels = 16
    model.roi_heads.mask_head.conv_dims = [8, 8]
    model.roi_heads.num_classes = num_classes
    model.proposal_generator.pre_nms_topk = (50, 50)
    model.proposal_generator.post_nms_topk = (20, 20)
    if not mask:
        for field in ("mask_in_features", "mask_pooler", "mask_head"):
            del model.roi_heads[field]
    return instantiate(model)


def cascade():
    """Cascade R-CNN: the three stages of Detectron2's config on the pyramid of `rcnn`."""
    heads = model_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads
    heads.num_classes = 3
    for head in heads.box_heads:
        head.input_shape.channels, head.fc_dims = 8, [16]
    for predictor in heads.box_predictors:
        predictor.input_shape.channels = 16
    for field in ("mask_in_features", "mask_pooler", "mask_head"):
        heads.pop(field, None)
    model = rcnn()
    model.roi_heads = instantiate(heads)
    return model


def image(
    boxes: Sequence[Sequence[float]] = ((8.0, 8.0, 40.0, 40.0),),
    size: tuple[int, int] = (64, 64),
    classes: Sequence[int] | None = None,
    seed: int = 0,
) -> dict:
    """An input in the format of Detectron2's DatasetMapper; `size` is height and width."""
    pixels = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed))
    truth = Instances(size)
    truth.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    truth.gt_classes = torch.tensor(
        classes if classes is not None else [i % 3 for i in range(len(boxes))], dtype=torch.long
    )
    return {
        "image": pixels.to(torch.uint8),
        "instances": truth,
        "height": size[0],
        "width": size[1],
    }


def batch(n: int = 2, size: tuple[int, int] = (64, 64)) -> list[dict]:
    return [image(seed=i, size=size) for i in range(n)]


def targets(
    *boxes: Sequence[Sequence[float]],
    classes: Sequence[Sequence[int]] | None = None,
    size: tuple[int, int] = (64, 64),
) -> Targets:
    """Ground truth of a batch, one image per list of boxes, as the distiller collects it."""
    from d2kd import Targets  # some tests use this module without d2kd

    of = classes or [None] * len(boxes)
    inputs = [image(boxes=b, classes=c, size=size) for b, c in zip(boxes, of, strict=True)]
    return Targets.from_inputs(inputs, "cpu")


def coco_dataset(folder: Path, n: int = 6, size: int = 64, classes: int = 10) -> tuple[Path, Path]:
    """Write a COCO-style dataset of noise images, each with a bright box.

    Returns:
        the path of its JSON file, and the folder of its images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(n):
        generator = torch.Generator().manual_seed(i)
        pixels = torch.randint(0, 128, (size, size, 3), generator=generator).numpy()
        x, y = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        pixels[y : y + 20, x : x + 20] += 100
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
        images.append({"id": i, "file_name": f"{i}.png", "height": size, "width": size})
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": i % classes + 1,
                "bbox": [x, y, 20, 20],
                "area": 400,
                "iscrowd": 0,
            }
        )
    categories = [{"id": c + 1, "name": str(c)} for c in range(classes)]
    table = dict(images=images, annotations=annotations, categories=categories)
    path = folder / "annotations.json"
    path.write_text(json.dumps(table))
    return path, folder


def coco_folder(folder: Path, n: int = 6, classes: int = 3) -> Path:
    """Write images/, train.json and val.json, as a user has them. Both have the same images."""
    table, _ = coco_dataset(folder / "images", n=n, classes=classes)
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(table.read_text())
    table.unlink()
    return folder
