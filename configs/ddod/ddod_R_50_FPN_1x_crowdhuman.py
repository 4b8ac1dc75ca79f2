"""DDOD R50 on CrowdHuman, alone: the student of ddod_R_50_FPN_1x_crowdhuman_pgd.py.

From PGD's release: one class, full bodies; long side at most 1400 pixels, batch 16, learning rate
0.01, 12 epochs, nothing frozen but BatchNorm, 500 detections. Warm-up and clipping are those of
its COCO recipe, which we take to hold here. d2kd/data/crowdhuman.py says where the data goes.
"""

from detectron2.config import LazyCall as L

from d2kd.evaluation.crowdhuman import CrowdHumanEvaluator

from .ddod_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.names = "crowdhuman_train"
dataloader.test.dataset.names = "crowdhuman_val"
dataloader.evaluator = L(CrowdHumanEvaluator)(dataset_name="${..test.dataset.names}")
dataloader.train.mapper.augmentations[0].max_size = 1400
dataloader.test.mapper.augmentations[0].max_size = 1400
dataloader.train.total_batch_size = 16

model.num_classes = 1
model.max_detections_per_image = 500
model.backbone.bottom_up.freeze_at = 0

optimizer.lr = 0.01
# 12 epochs * 938 steps; an epoch is 15,000 images in batches of 16.
train.max_iter = 12 * 938
train.eval_period = train.checkpointer.period = 938
lr_multiplier.warmup_length = 500 / train.max_iter
train.output_dir = "output/ddod_R_50_FPN_1x_crowdhuman"
