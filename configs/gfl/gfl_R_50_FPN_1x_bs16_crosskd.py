"""GFL R50 learns from GFL R101 by CrossKD: 43.7 AP in CrossKD's README. Nothing is inherited.

The method leaves out one part of the released code, see `d2kd.methods.CrossKD`. Train the teacher
first with gfl_R_101_FPN_2x_ms.py, or set `model.teacher.weights=PATH`.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import CrossKD, Methods

from ..common.coco_1x_bs16 import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = L(Distiller)(
    student=gfl(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "gfl_R_101_FPN_2x_ms.py"),
        weights="output/gfl_R_101_FPN_2x_ms/model_final.pth",
    ),
    methods=L(Methods)(crosskd=L(CrossKD)(weight=1.0, block=3)),
    inherit=False,
)

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_crosskd"
