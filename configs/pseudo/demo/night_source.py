"""As night_adapted.py, on clear images alone: the same steps without adaptation."""

from .night_adapted import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset = images("demo_train")
train.output_dir = "output/pseudo/night_source"
