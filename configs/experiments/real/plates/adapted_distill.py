"""The student of adapted.py, which also learns from the teacher's features in all images.

The method is given on the command line, for example:
model.methods.pkd._target_=d2kd.methods.PKD
"""

import os

from ..common import distilled
from .adapted import dataloader, lr_multiplier, optimizer, train
from .source import model as student

model = distilled(
    student,
    teacher=os.path.join(os.path.dirname(__file__), "teacher.py"),
    weights="output/real/plates/teacher/model_final.pth",
)

train.output_dir = "output/real/plates/adapted_distill"
