"""The student of halves_student.py, trained on all true labels."""

from .common import images
from .halves_student import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = images("demo_train")
train.output_dir = "output/pseudo/halves_all"
