"""A large RetinaNet, trained on a fifth of the labels: the teacher of labels_share.py."""

from .halves_common import LARGE, retinanet
from .share_start import dataloader, lr_multiplier, optimizer, train

model = retinanet(**LARGE)

train.output_dir = "output/pseudo/retinanet_share"
