"""The lower bound of night_adapted.py: the same number of steps on clear images alone."""

from .night_adapted import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset = images("demo_train")
train.output_dir = "output/pseudo/night_source"
