"""RetinaNet R50 learns from RetinaNet R101 by MGD.

Values, schedule and inheritance are from MGD's release. The teacher is Detectron2's R101 (3x). The
teacher in MGD's paper is an X101, with which the student has 41.0 AP.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import MGD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = L(Distiller)(
    student=retinanet(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/retinanet_R_101_FPN_3x.yaml", weights="zoo"),
    methods=L(Methods)(
        # Released for one-stage detectors (yzd-v/MGD). None are released for FCOS or GFL.
        mgd=L(MGD)(weight=1.0, mask=0.65, alpha=2e-5, levels=["p3", "p4", "p5", "p6", "p7"]),
    ),
    inherit=True,
)

optimizer.lr = 0.01
train.output_dir = "output/retinanet_R_50_FPN_2x_mgd"
