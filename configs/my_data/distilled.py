"""The student learns from its teacher, which teacher.py trains first."""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import recommended

from .common import OUTPUT
from .student import dataloader, lr_multiplier, optimizer, train
from .student import model as student

model = L(Distiller)(
    student=student,
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "teacher.py"),
        weights=f"{OUTPUT}/teacher/model_final.pth",
    ),
    methods=recommended(),
)

train.output_dir = f"{OUTPUT}/distilled"
