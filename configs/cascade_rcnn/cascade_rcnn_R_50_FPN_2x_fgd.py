"""Cascade R-CNN R50 learns from Cascade R-CNN R101 by FGD.

No setting is published for a Cascade R-CNN as the student. Schedule and inheritance are from the
Faster R-CNN recipes. Train the teacher first with cascade_rcnn_R_101_FPN_2x.py, or set
`model.teacher.weights=PATH`.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.cascade_rcnn import cascade_rcnn

model = L(Distiller)(
    student=cascade_rcnn(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "cascade_rcnn_R_101_FPN_2x.py"),
        weights="output/cascade_rcnn_R_101_FPN_2x/model_final.pth",
    ),
    methods=L(Methods)(fgd=L(FGD)(weight=1.0)),
    inherit=True,
)
# FGD's released values for Faster R-CNN (yzd-v/FGD @ c03a6cf); none are for Cascade R-CNN.
model.methods.fgd.update(tau=0.5, alpha=5e-5, beta=2.5e-5, gamma=5e-5, lambd=5e-7)
model.methods.fgd.levels = ["p2", "p3", "p4", "p5"]

train.output_dir = "output/cascade_rcnn_R_50_FPN_2x_fgd"
