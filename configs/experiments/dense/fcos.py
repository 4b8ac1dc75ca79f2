"""The small FCOS student, trained alone."""

from .common import dataloader, lr_multiplier, optimizer, student, train

model = student("fcos")

train.output_dir = "output/demo/dense/fcos"
