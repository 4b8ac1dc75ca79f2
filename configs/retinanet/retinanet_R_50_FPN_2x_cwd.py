"""RetinaNet R50 learns from RetinaNet R101 by CWD on the neck's maps.

The schedule is the one of the student alone. mmrazor's is 1x, as we recall. The teacher is
Detectron2's R101 (3x). Nothing is inherited.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import CWD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = L(Distiller)(
    student=retinanet(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/retinanet_R_101_FPN_3x.yaml", weights="zoo"),
    methods=L(Methods)(
        # mmrazor's values for RetinaNet.
        cwd=L(CWD)(weight=10.0, tau=1.0, levels=["p3", "p4", "p5", "p6", "p7"]),
    ),
    inherit=False,
)

optimizer.lr = 0.01
train.output_dir = "output/retinanet_R_50_FPN_2x_cwd"
