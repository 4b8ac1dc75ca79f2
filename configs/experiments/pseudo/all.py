"""The student of share_start.py, trained on all labels."""

from .common import images
from .share import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = images("demo_train")
train.output_dir = "output/pseudo/all"
