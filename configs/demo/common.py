"""What all models of the demo share: data, optimizer, schedule. Needs Detectron2 only."""

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
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import FCOS, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

train = model_zoo.get_config("common/train.py").train

_augmentations = [
    L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
    L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
]
dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="demo_train"),
        mapper=L(DatasetMapper)(is_train=True, augmentations=_augmentations, image_format="RGB"),
        total_batch_size=16,
        aspect_ratio_grouping=False,
        num_workers=0,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="demo_val", filter_empty=False),
        mapper=L(DatasetMapper)(is_train=False, augmentations=[], image_format="RGB"),
        batch_size=16,
        num_workers=0,
    ),
    evaluator=L(COCOEvaluator)(dataset_name="${..test.dataset.names}"),
)

optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0),
    lr=2e-3,
    weight_decay=0.05,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.1,
    warmup_method="linear",
    warmup_factor=0.05,
)

train.device = "cuda" if torch.cuda.is_available() else "cpu"
train.seed = 1


def resnet(blocks, width, levels):
    """A ResNet of basic blocks.

    Args:
        blocks: number of blocks in each stage, the first of which is res2.
        width: channels of the first stage; each stage doubles them.
        levels: the stages to return, such as ["res3", "res4"].
    """
    stages = [
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=n,
            stride_per_block=[1 if i == 0 else 2] + [1] * (n - 1),
            in_channels=width * 2 ** max(i - 1, 0),
            out_channels=width * 2**i,
            norm="BN",
        )
        for i, n in enumerate(blocks)
    ]
    return L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=width, norm="BN"),
        stages=stages,
        out_features=levels,
    )


def pyramid(blocks, width, neck):
    """A feature pyramid on strides 4, 8, 16 over a ResNet of basic blocks.

    Args:
        blocks: number of blocks in each of three stages.
        width: channels of the first stage; each stage doubles them.
        neck: channels of the pyramid.
    """
    names = [f"res{i}" for i in range(2, 2 + len(blocks))]
    return L(FPN)(
        bottom_up=resnet(blocks, width, names), in_features=names, out_channels=neck, norm="BN"
    )


_common = dict(
    num_classes=10,
    head_in_features=["p2", "p3", "p4"],
    pixel_mean=[110.0, 110.0, 110.0],
    pixel_std=[60.0, 60.0, 60.0],
)


def retinanet(blocks, width, neck, convs):
    """RetinaNet with one square anchor at each location.

    Args:
        blocks, width, neck: see `pyramid`.
        convs: convolutions in each tower of the head.
    """
    return L(RetinaNet)(
        backbone=pyramid(blocks, width, neck),
        head=L(RetinaNetHead)(
            input_shape=[ShapeSpec(channels=neck)] * len(blocks),
            num_classes="${..num_classes}",
            conv_dims=[neck] * convs,
            prior_prob=0.01,
            num_anchors=1,
        ),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[16], [28], [44]], aspect_ratios=[1.0], strides=[4, 8, 16], offset=0.5
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        anchor_matcher=L(Matcher)(
            thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        input_format="RGB",
        **_common,
    )


def fcos(blocks, width, neck, convs):
    """FCOS; arguments as for `retinanet`."""
    return L(FCOS)(
        backbone=pyramid(blocks, width, neck),
        head=L(FCOSHead)(
            input_shape=[ShapeSpec(channels=neck)] * len(blocks),
            num_classes="${..num_classes}",
            conv_dims=[neck] * convs,
            prior_prob=0.01,
        ),
        **_common,
    )
