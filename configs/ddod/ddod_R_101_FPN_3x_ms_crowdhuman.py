"""DDOD R101 on CrowdHuman, the teacher: train it before ddod_R_50_FPN_1x_crowdhuman_pgd.py.

    python train_net.py --config-file configs/ddod/ddod_R_101_FPN_3x_ms_crowdhuman.py --num-gpus 8

From PGD's release: 36 epochs, short side 480 to 960 pixels. Drops after 24 and 33 and no clipping
are those of its COCO teachers, which we take to hold here. ../common/coco_pgd_3x_ms.py says where
R-101.pkl comes from.
"""

from .ddod_R_50_FPN_1x_crowdhuman import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.mapper.augmentations[0].short_edge_length = [480, 960]
dataloader.train.mapper.augmentations[0].sample_style = "range"

model.backbone.bottom_up.stages.depth = 101

train.max_iter = 36 * 938
train.clip_grad_norm = 0.0
train.init_checkpoint = "R-101.pkl"
lr_multiplier.scheduler.milestones = [24, 33, 36]
lr_multiplier.warmup_length = 500 / train.max_iter
train.output_dir = "output/ddod_R_101_FPN_3x_ms_crowdhuman"
