"""As fog_adapted.py, with the true labels in place of a teacher's: what adaptation can reach."""

from .fog_adapted import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset.target = images("demo_fog_train_truth")
train.output_dir = "output/pseudo/fog_oracle"
