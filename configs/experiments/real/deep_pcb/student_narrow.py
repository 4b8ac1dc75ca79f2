"""The narrow backbone of student.py, and the neck and head of the teacher's width."""

from ..common import schedule, tiny_resnet
from .common import LEVELS, dataloader, detector

model = detector(tiny_resnet(8, LEVELS), neck=64, convs=2)
optimizer, lr_multiplier, train = schedule()

train.output_dir = "output/real/deep_pcb/student_narrow"
