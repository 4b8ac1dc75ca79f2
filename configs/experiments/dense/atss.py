"""The small ATSS student, trained alone."""

from .common import dataloader, lr_multiplier, optimizer, student, train

model = student("atss")

train.output_dir = "output/demo/dense/atss"
