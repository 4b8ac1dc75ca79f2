"""The teacher: EfficientNet-Lite0 with ImageNet weights."""

from ..common import efficientnet_lite0, schedule
from .common import LEVELS, dataloader, detector

model = detector(efficientnet_lite0(LEVELS), neck=64, convs=2)
optimizer, lr_multiplier, train = schedule()

optimizer.lr = 5e-4
train.amp.enabled = False  # on a CPU, EfficientNet is slower with it
train.max_iter = 4000
train.eval_period = 1000
train.output_dir = "output/real/deep_pcb/teacher"
