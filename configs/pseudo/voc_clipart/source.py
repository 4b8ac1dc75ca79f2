"""Faster R-CNN R50 on VOC 2007 and 2012, validated on Clipart1k.

Sizes and schedule are from Detectron2's Faster R-CNN for VOC, which does not clip gradients either.
"""

from ...common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ...common.models.faster_rcnn import faster_rcnn

model = faster_rcnn()
model.roi_heads.num_classes = 20

dataloader.train.dataset.names = ["voc_2007_trainval", "voc_2012_trainval"]
_sizes = dataloader.train.mapper.augmentations[0]
_sizes.short_edge_length = [*range(480, 801, 32)]
dataloader.test.dataset.names = "clipart_test"

optimizer.lr = 0.02
train.max_iter = 18000  # 17.4 epochs
train.eval_period = train.checkpointer.period = 2000
train.clip_grad_norm = 0.0
lr_multiplier.scheduler.milestones = [12000, 16000, 18000]
lr_multiplier.warmup_length = 100 / train.max_iter
train.output_dir = "output/pseudo/voc_clipart/source"
