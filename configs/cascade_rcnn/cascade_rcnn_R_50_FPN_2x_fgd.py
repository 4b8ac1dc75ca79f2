"""Cascade R-CNN R50 <- R101 by FGD. No setting is published for a Cascade R-CNN student: the
weights, schedule and inheritance are those of Faster R-CNN.

Train the teacher first, see cascade_rcnn_R_101_FPN_2x.py; `model.teacher.weights=PATH` names
another place.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import Methods

from ..common.fgd import fgd
from .cascade_rcnn_R_50_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(
    student=model,  # first, so that it gets the initial weights that it gets alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "cascade_rcnn_R_101_FPN_2x.py"),
        weights="output/cascade_rcnn_R_101_FPN_2x/model_final.pth",
    ),
    methods=L(Methods)(fgd=fgd("cascade_rcnn")),
    inherit=True,
)

train.output_dir = "output/cascade_rcnn_R_50_FPN_2x_fgd"
