"""GFL R50 learns from GFL R101 by LD: 42.1 AP in LD's README. Nothing is inherited.

Values and schedule are the release's, except that the gradient norm is clipped at 35 here. Train
the teacher first with gfl_R_101_FPN_2x_ms.py, or set `model.teacher.weights=PATH`.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import LD, Methods

from ..common.coco_1x_bs16 import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = L(Distiller)(
    student=gfl(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "gfl_R_101_FPN_2x_ms.py"),
        weights="output/gfl_R_101_FPN_2x_ms/model_final.pth",
    ),
    methods=L(Methods)(
        # Released (HikariTJU/LD) for 2 images per GPU: two of the three terms are sums over
        # the images of a GPU. With n images per GPU, `model.methods.ld.main=` and
        # `.valuable=` 0.5 / n keep their size.
        ld=L(LD)(
            weight=1.0, main=0.25, valuable=0.25, tau=10.0, classification=10.0, class_tau=2.0
        ),
    ),
    inherit=False,
)

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_ld"
