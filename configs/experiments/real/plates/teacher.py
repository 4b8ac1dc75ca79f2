"""The teacher, which has seen no image of the dash-cam, either."""

from ..common import efficientnet_lite0, schedule
from .common import LEVELS, dataloader, detector

model = detector(efficientnet_lite0(LEVELS), neck=64, convs=2)
optimizer, lr_multiplier, train = schedule()

optimizer.lr = 5e-4
train.max_iter = 1200
train.amp.enabled = False  # on a CPU, EfficientNet is slower with it
train.output_dir = "output/real/plates/teacher"
