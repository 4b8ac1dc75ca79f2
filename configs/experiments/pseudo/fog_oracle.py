"""The upper bound of fog_adapted.py: the same training with the true labels."""

from .fog_adapted import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset.target = images("demo_fog_train_truth")
train.output_dir = "output/pseudo/fog_oracle"
