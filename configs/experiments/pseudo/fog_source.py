"""The lower bound of fog_adapted.py: the same number of steps on clear images alone."""

from .fog_adapted import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset = images("demo_train")
train.output_dir = "output/pseudo/fog_source"
