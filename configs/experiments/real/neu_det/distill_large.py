"""The student learns from a teacher that sees the same picture in more pixels.

The method is given on the command line, as in distill.py.
"""

import os

from detectron2.config import LazyCall as L
from detectron2.data.transforms import ResizeShortestEdge

from d2kd.data import TwoSizeMapper

from ..common import distilled
from .student import dataloader, lr_multiplier, optimizer, train
from .student import model as student
from .teacher_large import SIZE
from .teacher_large import dataloader as large

model = distilled(
    student,
    teacher=os.path.join(os.path.dirname(__file__), "teacher_large.py"),
    weights="output/real/neu_det/teacher_large/model_final.pth",
)
model.teacher.image_size = SIZE

# Both see the same flips, crops and colors. Only then, the student's view is made smaller.
dataloader.train.mapper = L(TwoSizeMapper)(
    is_train=True,
    augmentations=large.train.mapper.augmentations,
    student_resize=[L(ResizeShortestEdge)(short_edge_length=160, max_size=160)],
    image_format="RGB",
)

train.output_dir = "output/real/neu_det/distilled_large"
