"""The teacher of teacher.py with larger input: 256 x 256 pixels instead of 160 x 160."""

from ..common import dataloader as make_dataloader
from .common import ANCHORS
from .teacher import lr_multiplier, model, optimizer, train

dataloader = make_dataloader("neu_det_train", "neu_det_val", size=256, batch=4)
model.anchor_generator.sizes = [[1.6 * size] for size in ANCHORS]

train.output_dir = "output/real/neu_det/teacher_large"
