"""The small RetinaNet student learns from its teacher by prediction-guided feature imitation."""

from detectron2.config import LazyCall as L

from d2kd.methods import PFI

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("retinanet", pfi=L(PFI)())

train.output_dir = "output/demo/dense/retinanet_pfi"
