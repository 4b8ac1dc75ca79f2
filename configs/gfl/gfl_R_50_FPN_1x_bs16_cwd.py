"""GFL R50 learns from GFL R101 by CWD on the neck's maps. Nothing is inherited.

No figure is published for this. mmrazor's 41.9 AP is by maps of class scores, which `CWD` does not
distill. Train the teacher first with gfl_R_101_FPN_2x_ms.py, or set `model.teacher.weights=PATH`.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import CWD, Methods

from ..common.coco_1x_bs16 import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = L(Distiller)(
    student=gfl(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "gfl_R_101_FPN_2x_ms.py"),
        weights="output/gfl_R_101_FPN_2x_ms/model_final.pth",
    ),
    methods=L(Methods)(
        # mmrazor's values for RetinaNet and Faster R-CNN; that they are used for GFL's neck
        # is ours.
        cwd=L(CWD)(weight=10.0, tau=1.0, levels=["p3", "p4", "p5", "p6", "p7"]),
    ),
    inherit=False,
)

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_cwd"
