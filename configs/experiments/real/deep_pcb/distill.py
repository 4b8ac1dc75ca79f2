"""The student learns from its teacher. The method is given on the command line.

For example: model.methods.pkd._target_=d2kd.methods.PKD
"""

import os

from ..common import distilled
from .student import dataloader, lr_multiplier, optimizer, train
from .student import model as student

model = distilled(
    student,
    teacher=os.path.join(os.path.dirname(__file__), "teacher.py"),
    weights="output/real/deep_pcb/teacher/model_final.pth",
)

train.output_dir = "output/real/deep_pcb/distilled"
