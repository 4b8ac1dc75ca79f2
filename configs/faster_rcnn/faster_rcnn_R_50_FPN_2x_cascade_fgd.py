"""Faster R-CNN R50 learns from Cascade Mask R-CNN X152 by FGD.

Values and schedule are from FGD's release. The teacher has another architecture: only the neck's
maps are compared and nothing is inherited, as in the release, whose teacher is a Cascade Mask R-CNN
X101-32x4d with deformable convolutions. This teacher is the strongest in Detectron2's model zoo. It
needs a Detectron2 with compiled operators.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.faster_rcnn import faster_rcnn

model = L(Distiller)(
    student=faster_rcnn(),  # built first: same initial weights as alone
    teacher=L(Teacher)(
        model="Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml", weights="zoo"
    ),
    methods=L(Methods)(fgd=L(FGD)(weight=1.0)),
    inherit=False,
)
# FGD's released values for Faster R-CNN (yzd-v/FGD @ c03a6cf).
model.methods.fgd.update(tau=0.5, alpha=5e-5, beta=2.5e-5, gamma=5e-5, lambd=5e-7)
model.methods.fgd.levels = ["p2", "p3", "p4", "p5"]

train.output_dir = "output/faster_rcnn_R_50_FPN_2x_cascade_fgd"
