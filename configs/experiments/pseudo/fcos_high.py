"""A large FCOS that knows the digits 5 to 9 only: a teacher of labels_halves.py."""

from .halves_common import LARGE, dataloader, fcos, learn, lr_multiplier, optimizer, train

model = fcos(**LARGE)
model.num_classes = 5
learn(dataloader, "high")

train.output_dir = "output/pseudo/fcos_high"
