"""The small GFL student learns from its teacher by prediction-guided feature imitation."""

from detectron2.config import LazyCall as L

from d2kd.methods import PFI

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("gfl", pfi=L(PFI)())

train.output_dir = "output/demo/dense/gfl_pfi"
