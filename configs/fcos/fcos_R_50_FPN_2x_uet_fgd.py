"""FCOS R50 learns from FCOS R101 by FGD with UET.

Train the teacher first with fcos_R_101_FPN_2x.py, or set `model.teacher.weights=PATH`.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, MCDropout, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.fcos import fcos

model = L(Distiller)(
    student=fcos(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "fcos_R_101_FPN_2x.py"),
        weights="output/fcos_R_101_FPN_2x/model_final.pth",
    ),
    methods=L(Methods)(fgd=L(FGD)(weight=1.0)),
    inherit=True,
)
# FGD's released values for FCOS (yzd-v/FGD @ c03a6cf).
model.methods.fgd.update(tau=0.8, alpha=1.6e-3, beta=8e-4, gamma=8e-4, lambd=8e-6)
model.methods.fgd.levels = ["p3", "p4", "p5", "p6", "p7"]
# UET has no official code. The target U + F ("sum") of five samples is well attested. The ramp of
# rates has one source. Element-wise dropout and FGD's unchanged values are inferred. U + F is about
# twice as large as F. If FGD's loss is far above the detector's (`distill/fgd/ratio` in the log),
# use `model.methods.fgd.uncertainty.combine=mean`, which is ours and keeps the scale of F.
model.methods.fgd.uncertainty = L(MCDropout)(
    rates=[0.15, 0.20, 0.25, 0.30, 0.35], combine="sum", granularity="element"
)

optimizer.lr = 0.01
train.output_dir = "output/fcos_R_50_FPN_2x_uet_fgd"
