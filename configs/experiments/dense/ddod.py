"""The small DDOD student, trained alone."""

from .common import dataloader, lr_multiplier, optimizer, student, train

model = student("ddod")

train.output_dir = "output/demo/dense/ddod"
