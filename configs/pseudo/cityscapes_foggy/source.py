"""Faster R-CNN R50 on Cityscapes, validated in fog.

This detector labels the images in fog, the adapted student starts from it, and the adapted student
is compared with it. Sizes and schedule are from Detectron2's Mask R-CNN for Cityscapes. Unlike that
one, it starts from ImageNet weights, because COCO's weights have seen more than the source.
"""

from ...common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ...common.models.faster_rcnn import faster_rcnn

model = faster_rcnn()
model.roi_heads.num_classes = 8

dataloader.train.dataset.names = "cityscapes_train"
dataloader.train.total_batch_size = 8
_sizes = dataloader.train.mapper.augmentations[0]
_sizes.update(short_edge_length=[*range(800, 1025, 32)], max_size=2048)
dataloader.test.dataset.names = "cityscapes_foggy_val"
dataloader.test.mapper.augmentations[0].update(short_edge_length=1024, max_size=2048)

optimizer.lr = 0.01
train.max_iter = 24000  # 65 epochs of 2,975 images
train.eval_period = train.checkpointer.period = 2000
lr_multiplier.scheduler.update(values=[1.0, 0.1], milestones=[18000, 24000])
lr_multiplier.warmup_length = 1000 / train.max_iter
train.output_dir = "output/pseudo/cityscapes_foggy/source"
