"""The small GFL student, trained alone."""

from .common import dataloader, lr_multiplier, optimizer, student, train

model = student("gfl")

train.output_dir = "output/demo/dense/gfl"
