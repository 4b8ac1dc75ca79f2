"""The small GFL student starts with its teacher's neck and head, and learns nothing else."""

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("gfl")

train.output_dir = "output/demo/dense/gfl_inherit"
