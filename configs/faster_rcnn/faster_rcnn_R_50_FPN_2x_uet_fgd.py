"""Faster R-CNN R50 learns from Faster R-CNN R101 by FGD with UET.

All but UET is as in faster_rcnn_R_50_FPN_2x_fgd.py.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, MCDropout, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.faster_rcnn import faster_rcnn

model = L(Distiller)(
    student=faster_rcnn(),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml", weights="zoo"),
    methods=L(Methods)(fgd=L(FGD)(weight=1.0)),
    inherit=True,
)
# FGD's released values for Faster R-CNN (yzd-v/FGD @ c03a6cf).
model.methods.fgd.update(tau=0.5, alpha=5e-5, beta=2.5e-5, gamma=5e-5, lambd=5e-7)
model.methods.fgd.levels = ["p2", "p3", "p4", "p5"]
# UET has no official code. The target U + F ("sum") of five samples is well attested. The ramp of
# rates has one source. Element-wise dropout and FGD's unchanged values are inferred. U + F is about
# twice as large as F. If FGD's loss is far above the detector's (`distill/fgd/ratio` in the log),
# use `model.methods.fgd.uncertainty.combine=mean`, which is ours and keeps the scale of F.
model.methods.fgd.uncertainty = L(MCDropout)(
    rates=[0.15, 0.20, 0.25, 0.30, 0.35], combine="sum", granularity="element"
)

train.output_dir = "output/faster_rcnn_R_50_FPN_2x_uet_fgd"
