"""A fifth of the labels, and no other image."""

from detectron2.config import LazyCall as L

from d2kd.data.partial import share

from .common import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(share)(dataset=images("demo_train"), share=0.2, seed=0)
train.max_iter = 1200
dataloader.train.total_batch_size = 8
train.output_dir = "output/pseudo/share"
