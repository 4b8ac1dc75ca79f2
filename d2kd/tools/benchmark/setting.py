"""What a benchmark measures on: models with random weights, random images, and this machine."""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.modeling.meta_arch import FCOS
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import nn

import d2kd
from d2kd import Distiller, Teacher
from d2kd.data import register_all
from d2kd.data.train_loader import TrainLoader
from d2kd.engine import Trainer
from d2kd.loading import without_weights
from d2kd.methods import Methods
from d2kd.readers import get_reader

ALONE, DISTILLED = "student step", "distilled step"


def build_model(cfg) -> nn.Module:
    """The config's model with random weights, ready to train.

    Raises:
        ValueError: there is no such device.
    """
    if cfg.train.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"train.device: expected a device of this machine, found {cfg.train.device!r} but no "
            f"GPU. Add train.device=cpu to the command."
        )
    without_weights(cfg.model)
    model = instantiate(cfg.model)
    if isinstance(model, Distiller):
        clear_schedules(model)
    return model.to(cfg.train.device)


def clear_schedules(model: Distiller) -> None:
    """Let all methods run in every step, whatever their schedules say."""
    method: Any
    for method in model.distillation.values():
        method.schedule = None


def student_of(model: nn.Module) -> nn.Module:
    """The student of a distiller; a plain detector itself."""
    return model.student if isinstance(model, Distiller) else model


def build_trainers(cfg, model: nn.Module) -> dict[str, Trainer]:
    """A trainer of the student by ALONE and, for a distiller with methods, one by DISTILLED.

    They train the same modules. Each has its own optimizer, with a learning rate of 0.
    """
    roles = {ALONE: student_of(model)}
    if isinstance(model, Distiller) and model.distillation:
        roles[DISTILLED] = model
    trainers, amp = {}, cfg.train.amp
    for name, module in roles.items():
        cfg.optimizer.params.model = module
        optimizer = instantiate(cfg.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        trainers[name] = Trainer(
            module,
            optimizer,
            amp_dtype=getattr(torch, amp.dtype) if amp.enabled else None,
            clip_grad_norm=cfg.train.clip_grad_norm,
        )
    return trainers


@torch.no_grad()
def settle(detector: Any, inputs: Sequence[dict]) -> None:
    """Give norms with stored statistics the statistics of their input.

    With random weights and other statistics, values would grow from block to block, and overflow.
    """

    def on_norm(module: Any, args: tuple) -> None:
        module.running_mean.copy_(args[0].mean((0, 2, 3)))
        module.running_var.copy_(args[0].var((0, 2, 3), unbiased=False).clamp(min=1e-2))

    kinds = (FrozenBatchNorm2d, nn.BatchNorm2d)
    norms = [m for m in detector.modules() if isinstance(m, kinds)]
    handles = [m.register_forward_pre_hook(on_norm) for m in norms]
    try:
        reader = get_reader(detector)
        reader.run(reader.images(inputs), {"features"})
    finally:
        for handle in handles:
            handle.remove()


def large_maps(methods: Methods) -> Distiller:
    """A distiller whose maps are as large as on COCO, but whose networks are small.

    Student and teacher are an FCOS with the neck, the levels and the channels of detectors for
    COCO, on a thin backbone. This measures methods on maps of real size in a short time.
    """

    def detector() -> FCOS:
        widths, names = (16, 16, 32, 64, 128), ["res3", "res4", "res5"]
        stages = [
            ResNet.make_stage(
                BasicBlock, 1, stride_per_block=[stride], in_channels=i, out_channels=o, norm="BN"
            )
            for stride, i, o in zip((1, 2, 2, 2), widths, widths[1:], strict=False)
        ]
        body = ResNet(BasicStem(out_channels=16, norm="BN"), stages, out_features=names)
        neck = FPN(body, names, 256, top_block=LastLevelP6P7(256, 256, "p5"))
        head = FCOSHead(input_shape=[ShapeSpec(channels=256)] * 5, num_classes=80, conv_dims=[256])
        return FCOS(
            backbone=neck,
            head=head,
            num_classes=80,
            pixel_mean=[103.53, 116.28, 123.675],
            pixel_std=[57.0, 57.0, 57.0],
        )

    return Distiller(student=detector(), teacher=Teacher(detector(), None), methods=methods)


def random_batch(
    size: tuple[int, int], boxes: int, batch: int, detector: nn.Module, seed: int = 0
) -> list[dict]:
    """Images of noise with random boxes, as Detectron2's DatasetMapper gives them.

    Args:
        size: height and width in pixels.
        boxes: number of boxes in each image. They are inside the image. Their sides are between 8
            pixels (or a quarter of the image's side, if that is smaller) and half of the image's
            side, evenly distributed in the logarithm.
        batch: number of images.
        detector: the boxes have its classes, and masks if it learns from masks.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8)
    sides = torch.tensor([size[1], size[0]], dtype=torch.float32)
    small = (sides / 4).clamp(max=8)
    inputs = []
    for image in pixels:
        extent = small * (sides / 2 / small) ** torch.rand(boxes, 2, generator=generator)
        corner = (sides - extent) * torch.rand(boxes, 2, generator=generator)
        truth = Instances(size)
        truth.gt_boxes = Boxes(torch.cat([corner, corner + extent], 1))
        truth.gt_classes = torch.randint(
            0, get_reader(detector).num_classes, (boxes,), generator=generator
        )
        if getattr(getattr(detector, "roi_heads", None), "mask_on", False):
            outlines = truth.gt_boxes.tensor[:, [0, 1, 2, 1, 2, 3, 0, 3]].tolist()
            truth.gt_masks = PolygonMasks([[outline] for outline in outlines])
        inputs.append(dict(image=image, instances=truth, height=size[0], width=size[1]))
    return inputs


def time_loader(cfg, batches: int) -> list[float]:
    """Seconds for each batch of the config's own training data, while nothing else runs."""
    register_all()
    stream = iter(TrainLoader(cfg.dataloader.train)(0, 0))
    next(stream)  # workers start
    marks = [time.perf_counter()]
    for _ in range(batches):
        next(stream)
        marks.append(time.perf_counter())
    return [end - start for start, end in itertools.pairwise(marks)]


def describe_machine(device: torch.device) -> dict:
    """The facts about this machine that times depend on."""
    names = [x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")]
    cuda = device.type == "cuda"
    return dict(
        device=torch.cuda.get_device_name(device) if cuda else (names or [platform.machine()])[0],
        system=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda if cuda else None,
        detectron2=detectron2.__version__,
        d2kd=d2kd.__version__,
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []
