"""The start of all students with few labels: trained on a fifth of the labels."""

from detectron2.config import LazyCall as L

from d2kd.data import random_subset

from .common import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(random_subset)(dataset=images("demo_train"), share=0.2, seed=0)
train.max_iter = 1500
train.output_dir = "output/pseudo/share_start"
