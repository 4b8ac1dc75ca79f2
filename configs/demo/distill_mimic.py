"""The demo's student learns by plain mimicking instead of FGD."""

from detectron2.config import LazyCall as L

from d2kd.methods import Methods, Mimic

from .distill import dataloader, lr_multiplier, model, optimizer, train

model.methods = L(Methods)(mimic=L(Mimic)())

train.output_dir = "output/demo/distilled_mimic"
