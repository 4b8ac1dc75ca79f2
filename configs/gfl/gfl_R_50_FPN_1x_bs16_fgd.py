"""GFL R50 learns from GFL R101 by FGD, as in FGD's release: 43.5 AP there.

Values, schedule and inheritance are the release's. Train the teacher first with
gfl_R_101_FPN_2x_ms.py, or set `model.teacher.weights=PATH`.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, Methods

from ..common.coco_1x_bs16 import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = L(Distiller)(
    student=gfl(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "gfl_R_101_FPN_2x_ms.py"),
        weights="output/gfl_R_101_FPN_2x_ms/model_final.pth",
    ),
    methods=L(Methods)(fgd=L(FGD)(weight=1.0)),
    inherit=True,
)
# FGD's released values for GFL (yzd-v/FGD @ c03a6cf).
model.methods.fgd.update(tau=0.5, alpha=1e-3, beta=5e-4, gamma=5e-4, lambd=5e-6)
model.methods.fgd.levels = ["p3", "p4", "p5", "p6", "p7"]

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_fgd"
