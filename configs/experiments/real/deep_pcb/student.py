"""The student alone: a ResNet of three basic blocks, from random weights."""

from ..common import schedule, tiny_resnet
from .common import LEVELS, dataloader, detector

model = detector(tiny_resnet(8, LEVELS), neck=32, convs=2)
optimizer, lr_multiplier, train = schedule()

train.output_dir = "output/real/deep_pcb/student"
