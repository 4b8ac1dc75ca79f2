"""The teacher of teacher.py with larger input: 256 x 256 pixels instead of 160 x 160."""

from ..common import dataloader as make_dataloader
from ..common import efficientnet_lite0, gfl, schedule
from .common import ANCHORS, LEVELS

dataloader = make_dataloader("neu_det_train", "neu_det_val", size=256, batch=4)
model = gfl(
    efficientnet_lite0(LEVELS), 6, neck=64, convs=2, anchors=[1.6 * size for size in ANCHORS]
)
optimizer, lr_multiplier, train = schedule()

optimizer.lr = 5e-4
train.amp.enabled = False  # on a CPU, EfficientNet is slower with it
train.max_iter = 4000
train.eval_period = 1000
train.output_dir = "output/real/neu_det/teacher_large"
