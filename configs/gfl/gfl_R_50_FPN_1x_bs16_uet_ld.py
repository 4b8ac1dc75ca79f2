"""GFL R50 learns from GFL R101 by LD with UET: +0.2 AP over LD in UET's paper.

Train the teacher first with gfl_R_101_FPN_2x_ms.py, or set `model.teacher.weights=PATH`.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import LD, MCDropout, Methods

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
# UET has no official code. The target U + F ("sum") of five samples is well attested. The ramp of
# rates has one source. Where the paper has its dropout in LD is not known; here it is on the
# teacher's logits of box sides, by element. Their sum is twice as large, as at half the
# temperature; `combine="mean"`, which is ours, keeps the teacher's scale.
model.methods.ld.uncertainty = L(MCDropout)(
    rates=[0.15, 0.20, 0.25, 0.30, 0.35], combine="sum", granularity="element"
)

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_uet_ld"
