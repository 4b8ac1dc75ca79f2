"""GFL R50 learns from GFL R101 by FGD with UET: the main result of UET's paper, 44.1 AP.

Whether the paper's student inherits neck and head is not known. FGD's does, and so does this one;
`model.inherit=False` is the other reading. Train the teacher first with gfl_R_101_FPN_2x_ms.py, or
set `model.teacher.weights=PATH`.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, MCDropout, Methods

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
# UET has no official code. The target U + F ("sum") of five samples is well attested. The ramp of
# rates has one source. Element-wise dropout and FGD's unchanged values are inferred. U + F is about
# twice as large as F. If FGD's loss is far above the detector's (`distill/fgd/ratio` in the log),
# use `model.methods.fgd.uncertainty.combine=mean`, which is ours and keeps the scale of F.
model.methods.fgd.uncertainty = L(MCDropout)(
    rates=[0.15, 0.20, 0.25, 0.30, 0.35], combine="sum", granularity="element"
)

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_uet_fgd"
