"""Faster R-CNN R50 learns from Faster R-CNN R101 by CWD on the neck's maps.

The schedule is the one of the student alone. mmrazor's is 1x, as we recall. The teacher is
Detectron2's R101 (3x). Nothing is inherited.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import CWD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.faster_rcnn import faster_rcnn

model = L(Distiller)(
    student=faster_rcnn(),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml", weights="zoo"),
    methods=L(Methods)(
        # mmrazor's values for Faster R-CNN.
        cwd=L(CWD)(weight=10.0, tau=1.0, levels=["p2", "p3", "p4", "p5", "p6"]),
    ),
    inherit=False,
)

train.output_dir = "output/faster_rcnn_R_50_FPN_2x_cwd"
