"""Faster R-CNN R50 on the cars of Sim10k, validated on the cars of Cityscapes.

All else is as in ../cityscapes_foggy/source.py. Sim10k has 10,000 images, so that the steps are 19
epochs.
"""

from d2kd.data import register_class_subset

from ..cityscapes_foggy.source import dataloader, lr_multiplier, model, optimizer, train

register_class_subset("cityscapes_val_car", "cityscapes_val", ["car"])

model.roi_heads.num_classes = 1
dataloader.train.dataset.names = "sim10k_train"
dataloader.test.dataset.names = "cityscapes_val_car"
dataloader.evaluator.output_dir = "${train.output_dir}"  # a COCO JSON of the cars is written there
train.output_dir = "output/pseudo/sim10k_cityscapes/source"
