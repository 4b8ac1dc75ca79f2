"""As night_adapted.py, with the true labels in place of a teacher's: what adaptation can reach."""

from .night_adapted import dataloader, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset.target = images("demo_night_train_truth")
train.output_dir = "output/pseudo/night_oracle"
