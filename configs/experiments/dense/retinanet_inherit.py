"""The small RetinaNet student starts with its teacher's neck and head, and learns nothing else."""

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("retinanet")

train.output_dir = "output/demo/dense/retinanet_inherit"
