"""GFL, the small one with the neck and head of the large one at the start, no more."""

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("gfl")

train.output_dir = "output/demo/dense/gfl_inherit"
