"""The demo's student learns from the demo's teacher, with the same data, schedule and seed."""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, Methods

from .student import dataloader, lr_multiplier, optimizer, train
from .student import model as student

_here = os.path.dirname(__file__)

model = L(Distiller)(
    student=student,
    teacher=L(Teacher)(
        model=os.path.join(_here, "teacher.py"), weights=os.path.join(_here, "teacher.pth")
    ),
    methods=L(Methods)(fgd=L(FGD)(alpha=5e-3, beta=2.5e-3)),
    inherit=True,
)

train.output_dir = "output/demo/distilled"
