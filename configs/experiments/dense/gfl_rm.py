"""The small GFL student learns from its teacher by rank mimicking."""

from detectron2.config import LazyCall as L

from d2kd.methods import RankMimic

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("gfl", rm=L(RankMimic)())

train.output_dir = "output/demo/dense/gfl_rm"
