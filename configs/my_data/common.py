"""Your own COCO files: the data, one detector of two sizes, and the schedule.

The environment variable D2KD_DATA names the folder; docs/your_data.md has the commands. Change
what you want here: a copy of this folder works as well.
"""

import os

import detectron2.data.transforms as T
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

from d2kd.backbones import LibraryBackbone
from d2kd.data import random_subset, register_coco_folder
from d2kd.detectors import GFL, PointHead

# Variables that are set but empty count as not set.
DATA = register_coco_folder(os.environ.get("D2KD_DATA") or "datasets/my_data")
SIZE = 320  # pixels of the longer side of an image; 640 finds smaller objects, at 4 times the cost
BATCH = 8
EPOCHS = 36
OUTPUT = os.environ.get("D2KD_OUTPUT") or "output/my_data"

_augmentations = [
    L(T.ResizeScale)(min_scale=0.8, max_scale=1.25, target_height=SIZE, target_width=SIZE),
    L(T.FixedSizeCrop)(crop_size=[SIZE, SIZE]),
    L(T.RandomFlip)(horizontal=True),  # take it out if left and right matter
    L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
    L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
]
dataloader = dict(
    train=L(build_detection_train_loader)(
        # A share below 1, such as dataloader.train.dataset.share=0.5, shows what fewer labels cost.
        dataset=L(random_subset)(
            dataset=L(get_detection_dataset_dicts)(names=DATA.train), share=1.0
        ),
        mapper=L(DatasetMapper)(is_train=True, augmentations=_augmentations, image_format="RGB"),
        total_batch_size=BATCH,
        aspect_ratio_grouping=False,
        num_workers=2,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names=DATA.val, filter_empty=False),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=SIZE, max_size=SIZE)],
            image_format="RGB",
        ),
        batch_size=8,
        num_workers=2,
    ),
    evaluator=L(COCOEvaluator)(dataset_name="${..test.dataset.names}"),
)

optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0),
    lr=5e-4,
    weight_decay=0.05,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.05,
    warmup_method="linear",
    warmup_factor=0.01,
)

train = model_zoo.get_config("common/train.py").train
train.device = "cuda" if torch.cuda.is_available() else "cpu"
train.seed = 1
train.max_iter = max(1000, EPOCHS * DATA.images // BATCH)
train.eval_period = train.max_iter // 4
train.checkpointer.period = 250
train.checkpointer.max_to_keep = 1
train.clip_grad_norm = 35.0


def detector(network, neck):
    """GFL on P3 to P5 of a network of torchvision.

    Args:
        network: such as "torchvision/resnet18". torchvision downloads its ImageNet weights when the
            training starts.
        neck: channels of the pyramid and of the head.
    """
    levels = ["res3", "res4", "res5"]
    return L(GFL)(
        backbone=L(FPN)(
            bottom_up=L(LibraryBackbone)(
                name=network, out_features=levels, pretrained=True, freeze_at=1, norm="FrozenBN"
            ),
            in_features=levels,
            out_channels=neck,
            norm="GN",
        ),
        head=L(PointHead)(
            input_shape=[ShapeSpec(channels=neck)] * 3,
            num_classes="${..num_classes}",
            conv_dims=[neck] * 2,
            box_channels=4 * 17,
            quality=False,
            norm="GN",
        ),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[32], [64], [128]], aspect_ratios=[1.0], strides=[8, 16, 32], offset=0.0
        ),
        num_classes=len(DATA.classes),
        head_in_features=["p3", "p4", "p5"],
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
        input_format="RGB",
    )
