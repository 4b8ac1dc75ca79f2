"""Faster R-CNN R50 learns from Faster R-CNN R101 by MGD. Nothing is inherited.

Values and schedule are from MGD's release. The teacher of the release is a Cascade Mask R-CNN X101
with deformable convolutions, with which the student has 42.1 AP. The teacher here is Detectron2's
R101 (3x). faster_rcnn_R_50_FPN_2x_cascade_fgd.py has a Cascade R-CNN as teacher.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import MGD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.faster_rcnn import faster_rcnn

model = L(Distiller)(
    student=faster_rcnn(),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml", weights="zoo"),
    methods=L(Methods)(
        # Released for two-stage detectors (yzd-v/MGD).
        mgd=L(MGD)(weight=1.0, mask=0.45, alpha=5e-7, levels=["p2", "p3", "p4", "p5"]),
    ),
    inherit=False,
)

train.output_dir = "output/faster_rcnn_R_50_FPN_2x_mgd"
