"""The small AutoAssign student, trained alone."""

from .common import dataloader, lr_multiplier, optimizer, student, train

model = student("autoassign")

train.output_dir = "output/demo/dense/autoassign"
