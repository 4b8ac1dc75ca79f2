"""The demo's student alone. It needs Detectron2 only."""

from .common import dataloader, lr_multiplier, optimizer, retinanet, train

model = retinanet(blocks=[1, 1, 1], width=16, neck=48, convs=2)

train.output_dir = "output/demo/alone"
train.max_iter = 600
train.eval_period = 0
train.checkpointer.period = 300
