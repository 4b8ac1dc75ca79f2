"""A teacher that has seen the same fifth of the labels."""

from .fifth import dataloader
from .teacher import lr_multiplier, model, optimizer, train

train.max_iter = 2000
train.output_dir = "output/real/deep_pcb/fifth_teacher"
