"""The small FCOS student learns from its teacher by rank mimicking."""

from detectron2.config import LazyCall as L

from d2kd.methods import RankMimic

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("fcos", rm=L(RankMimic)())

train.output_dir = "output/demo/dense/fcos_rm"
