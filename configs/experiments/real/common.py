"""Real photographs: the data, and one GFL detector on several backbones."""

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

from d2kd import Distiller, Teacher
from d2kd.backbones import LibraryBackbone
from d2kd.data import (
    PartialMapper,
    RandomBlur,
    RandomErase,
    TwoViewMapper,
    exclude_images,
    load_unlabeled,
    mix,
)
from d2kd.detectors import GFL, PointHead
from d2kd.methods import Methods
from d2kd.pseudo import FixedThresholds, Fusion, LabelTeacher, load_pseudo_labels

from ...demo.common import resnet

# Files that `d2kd weights` writes. None of them is part of d2kd.
WEIGHTS = os.environ.get("D2KD_IMAGENET", "output/imagenet")


def schedule():
    """AdamW with a cosine schedule; `train.max_iter` sets its length."""
    optimizer = L(torch.optim.AdamW)(
        params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0),
        lr=2e-3,
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
    train.amp = dict(enabled=True, dtype="bfloat16")  # on a CPU with AMX: half of the time
    train.seed = 1
    train.max_iter = 2000
    train.eval_period = 0
    train.checkpointer.period = 500
    train.checkpointer.max_to_keep = 1
    return optimizer, lr_multiplier, train


def dataloader(train, test, size, crop=None, batch=8):
    """Square images, flipped both ways, and shown a little smaller or larger.

    Args:
        train, test: names of data sets.
        size: side to which images are resized, in pixels.
        crop: side of the random crops for training, in pixels; default: `size`.
    """
    crop = crop or size
    augmentations = [
        L(T.ResizeScale)(min_scale=0.8, max_scale=1.25, target_height=size, target_width=size),
        L(T.FixedSizeCrop)(crop_size=[crop, crop]),
        L(T.RandomFlip)(horizontal=True),
        L(T.RandomFlip)(horizontal=False, vertical=True),
        L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
        L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
    ]
    resize = L(T.ResizeShortestEdge)(short_edge_length=size, max_size=size)
    return dict(
        train=L(build_detection_train_loader)(
            dataset=L(get_detection_dataset_dicts)(names=train),
            mapper=L(DatasetMapper)(is_train=True, augmentations=augmentations, image_format="RGB"),
            total_batch_size=batch,
            aspect_ratio_grouping=False,
            num_workers=0,
        ),
        test=L(build_detection_test_loader)(
            dataset=L(get_detection_dataset_dicts)(names=test, filter_empty=False),
            mapper=L(DatasetMapper)(is_train=False, augmentations=[resize], image_format="RGB"),
            batch_size=16,
            num_workers=0,
        ),
        evaluator=L(COCOEvaluator)(dataset_name="${..test.dataset.names}"),
    )


def efficientnet_lite0(levels):
    """EfficientNet-Lite0 with ImageNet weights. The stem and the first stage are frozen."""
    return L(LibraryBackbone)(
        name="timm/tf_efficientnet_lite0",
        out_features=levels,
        pretrained=os.path.join(WEIGHTS, "efficientnet_lite0.safetensors"),
        freeze_at=2,
    )


def tiny_resnet(width, levels):
    """A ResNet of one basic block for each stage, for which there are no ImageNet weights."""
    return resnet([1] * (int(levels[-1][-1]) - 1), width, levels)


def gfl(bottom_up, num_classes, neck, convs, anchors):
    """GFL on a feature pyramid.

    Args:
        bottom_up: the backbone's node; its `out_features` are the levels of the pyramid.
        neck: channels of the pyramid and of the head.
        convs: convolutions in each tower of the head.
        anchors: sizes of the square anchors, in pixels, one for each level.
    """
    levels = list(bottom_up.out_features)
    strides = [2 ** int(level[-1]) for level in levels]
    return L(GFL)(
        backbone=L(FPN)(bottom_up=bottom_up, in_features=levels, out_channels=neck, norm="BN"),
        head=L(PointHead)(
            input_shape=[ShapeSpec(channels=neck)] * len(levels),
            num_classes="${..num_classes}",
            conv_dims=[neck] * convs,
            box_channels=68,
            quality=False,
            norm="GN",
        ),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[size] for size in anchors], aspect_ratios=[1.0], strides=strides, offset=0.0
        ),
        num_classes=num_classes,
        head_in_features=[level.replace("res", "p") for level in levels],
        pixel_mean=[127.5] * 3,
        pixel_std=[127.5] * 3,
        input_format="RGB",
    )


def distilled(student, teacher, weights):
    """The student with its teacher, and without a method.

    The teacher is compiled. The images of a batch have one size, so this takes a minute once.

    Args:
        student: node of the student.
        teacher: path of the teacher's config.
        weights: path of its checkpoint.
    """
    return L(Distiller)(
        student=student,
        teacher=L(Teacher)(model=teacher, weights=weights, dtype="bfloat16", compile=True),
        methods=L(Methods)(),
    )


def labels(dataset, teacher, weights, classes, output):
    """What `d2kd label` needs to label a data set as if it had no labels.

    Args:
        dataset: its name; its own labels serve for the report only.
        teacher, weights: see `distilled`.
        classes: data set with the classes of the teacher.
        output: folder of the labels.
    """
    return dict(
        images=dict(dataset=dataset),
        classes=dataset,
        teachers=dict(large=L(LabelTeacher)(model=teacher, weights=weights, classes=classes)),
        thresholds=L(FixedThresholds)(high=0.5, low=0.3),
        fusion=L(Fusion)(),
        output=output,
        truth=dataset,
    )


def add_pseudo_labels(labeled, path, shares=None):
    """The labeled images, and the other images with a teacher's labels.

    Args:
        labeled: node of the images with true labels.
        path: of the teacher's labels.json, which may also have the labeled images.
        shares: of the two in a batch, see `d2kd.data.mix`. Default: as many as there are.
    """
    rest = L(exclude_images)(dataset=L(load_pseudo_labels)(path=path), images=labeled)
    return L(mix)(labeled=labeled, rest=rest, shares=shares)


def add_unlabeled(labeled, name):
    """The labeled images, and as many of the other images of a data set without labels.

    Args:
        labeled: node of the images with true labels.
        name: of the data set.
    """
    rest = L(exclude_images)(dataset=L(load_unlabeled)(name=name), images=labeled)
    return L(mix)(labeled=labeled, rest=rest, shares=[1, 1])


def with_partial_labels(mapper):
    """The training mapper, changed so that it passes on which labels are missing."""
    return L(PartialMapper)(
        is_train=True, augmentations=mapper.augmentations, image_format=mapper.image_format
    )


def with_two_views(mapper):
    """The training mapper, changed so that a mean teacher sees its image without strong changes.

    The student's view also has other brightness and contrast, the last two augmentations of
    `dataloader`, is sometimes blurred, and lacks some parts.
    """
    *geometry, brightness, contrast = mapper.augmentations
    return L(TwoViewMapper)(
        is_train=True,
        augmentations=geometry,
        strong=[
            brightness,
            contrast,
            L(T.RandomApply)(tfm_or_aug=L(RandomBlur)(sigma_min=0.1, sigma_max=1.5), prob=0.3),
            L(T.RandomApply)(tfm_or_aug=L(RandomErase)(count=2, area_max=0.05), prob=0.5),
        ],
        image_format=mapper.image_format,
    )
