"""The small ATSS student starts with its teacher's neck and head, and learns nothing else."""

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("atss")

train.output_dir = "output/demo/dense/atss_inherit"
