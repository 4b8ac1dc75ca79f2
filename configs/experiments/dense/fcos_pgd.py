"""The small FCOS student learns from its teacher by PGD."""

from detectron2.config import LazyCall as L

from d2kd.methods import PGD

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("fcos", pgd=L(PGD)())

train.output_dir = "output/demo/dense/fcos_pgd"
