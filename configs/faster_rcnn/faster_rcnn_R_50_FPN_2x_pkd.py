"""Faster R-CNN R50 learns from Faster R-CNN R101 by PKD.

Weight, levels and schedule are mmrazor's, and nothing is inherited, as there. mmrazor's R101 is a
2x model, with which the student has 40.3 AP. Detectron2's is 3x.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import PKD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.faster_rcnn import faster_rcnn

model = L(Distiller)(
    student=faster_rcnn(),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml", weights="zoo"),
    methods=L(Methods)(
        # mmrazor's values for Faster R-CNN. It leaves out the coarsest of the five levels.
        pkd=L(PKD)(weight=6.0, levels=["p2", "p3", "p4", "p5"]),
    ),
    inherit=False,
)

train.output_dir = "output/faster_rcnn_R_50_FPN_2x_pkd"
