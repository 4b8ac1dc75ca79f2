"""All labels, for the student of share_start.py."""

from .common import images
from .share import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = images("demo_train")
train.output_dir = "output/pseudo/all"
