"""The demo's teacher."""

from .common import dataloader, lr_multiplier, optimizer, retinanet, train

model = retinanet(blocks=[2, 2, 2], width=48, neck=48, convs=2)

train.output_dir = "output/demo/teacher"
train.max_iter = 3000
train.eval_period = 1000
train.checkpointer.period = 1000
