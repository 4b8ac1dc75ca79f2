"""The small RetinaNet student, trained alone."""

from .common import dataloader, lr_multiplier, optimizer, student, train

model = student("retinanet")

train.output_dir = "output/demo/dense/retinanet"
