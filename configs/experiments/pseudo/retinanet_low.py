"""A large RetinaNet that knows the digits 0 to 4 only: a teacher of labels_halves.py."""

from .halves_common import LARGE, dataloader, learn, lr_multiplier, optimizer, retinanet, train

model = retinanet(**LARGE)
model.num_classes = 5
learn(dataloader, "low")

train.output_dir = "output/pseudo/retinanet_low"
