"""GFL R101 at batch 16, the teacher of the configs with "bs16": train it first.

    python train_net.py --config-file configs/gfl/gfl_R_101_FPN_2x_ms.py --num-gpus 8

The published teacher of FGD, UET, PKD and LD is mmdetection's, 24 epochs on many sizes, 44.9 AP
(44.7 in mmrazor's README). Short sides from 480 to 800 pixels and no clipping are its recipe as we
recall it. ../common/coco_pgd_3x_ms.py says where R-101.pkl comes from.
"""

from ..common.coco_1x import dataloader, lr_multiplier, optimizer, train
from .gfl_R_50_FPN_1x import model

model.backbone.bottom_up.stages.depth = 101

dataloader.train.mapper.augmentations[0].short_edge_length = [480, 800]
dataloader.train.mapper.augmentations[0].sample_style = "range"

train.max_iter = 24 * 7330
train.clip_grad_norm = 0.0
train.init_checkpoint = "R-101.pkl"
train.output_dir = "output/gfl_R_101_FPN_2x_ms"
lr_multiplier.scheduler.milestones = [16, 22, 24]
lr_multiplier.warmup_length = 500 / train.max_iter
