"""Mask R-CNN R50 <- R101 by FGD, with the release's weights, schedule and inheritance.

The teacher is Detectron2's, 3x with short sides of 640 to 800 pixels; the release's is a 2x model.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import Methods

from ..common.fgd import fgd
from .mask_rcnn_R_50_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(
    student=model,  # first, so that it gets the initial weights that it gets alone
    teacher=L(Teacher)(
        model="COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml", weights="zoo"
    ),
    methods=L(Methods)(fgd=fgd("mask_rcnn")),
    inherit=True,
)

train.output_dir = "output/mask_rcnn_R_50_FPN_2x_fgd"
