"""Mask R-CNN R50 learns from Mask R-CNN R101 by FGD, as in FGD's release.

Values, schedule and inheritance are the release's. The teacher is Detectron2's, trained for 3x with
short sides of 640 to 800 pixels. The release's teacher is a 2x model.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.mask_rcnn import mask_rcnn

model = L(Distiller)(
    student=mask_rcnn(),  # built first: same initial weights as alone
    teacher=L(Teacher)(
        model="COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml", weights="zoo"
    ),
    methods=L(Methods)(fgd=L(FGD)(weight=1.0)),
    inherit=True,
)
# FGD's released values for Mask R-CNN (yzd-v/FGD @ c03a6cf).
model.methods.fgd.update(tau=0.5, alpha=5e-5, beta=2.5e-5, gamma=5e-5, lambd=5e-7)
model.methods.fgd.levels = ["p2", "p3", "p4", "p5"]

dataloader.train.mapper.use_instance_mask = True
train.output_dir = "output/mask_rcnn_R_50_FPN_2x_fgd"
