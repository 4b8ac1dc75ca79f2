"""The small GFL student learns from its teacher by rank mimicking and PFI."""

from detectron2.config import LazyCall as L

from d2kd.methods import PFI, RankMimic

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("gfl", rm=L(RankMimic)(), pfi=L(PFI)())

train.output_dir = "output/demo/dense/gfl_rm_pfi"
