"""As fog_adapted.py, on clear images alone: the same steps without adaptation."""

from .fog_adapted import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset = images("demo_train")
train.output_dir = "output/pseudo/fog_source"
