"""All labels."""

from .common import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset = images("demo_train")
train.max_iter = 1200
dataloader.train.total_batch_size = 8
train.output_dir = "output/pseudo/all"
