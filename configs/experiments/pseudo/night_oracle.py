"""The upper bound of night_adapted.py: the same training with the true labels."""

from .night_adapted import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset.target = images("demo_night_train_truth")
train.output_dir = "output/pseudo/night_oracle"
