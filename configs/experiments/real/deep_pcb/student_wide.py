"""A student with twice the channels and four times the parameters of student.py."""

from ..common import schedule, tiny_resnet
from .common import LEVELS, dataloader, detector

model = detector(tiny_resnet(16, LEVELS), neck=64, convs=2)
optimizer, lr_multiplier, train = schedule()

train.output_dir = "output/real/deep_pcb/student_wide"
