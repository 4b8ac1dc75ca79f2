"""RetinaNet R50 learns from RetinaNet R101 by PKD.

Weight, levels and schedule are mmrazor's, and nothing is inherited, as there. mmrazor's teacher is
an X101, with which the student has 40.8 AP. Here it is Detectron2's R101 (3x).
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import PKD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = L(Distiller)(
    student=retinanet(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/retinanet_R_101_FPN_3x.yaml", weights="zoo"),
    methods=L(Methods)(
        # mmrazor's values for RetinaNet, published with ResNeXt-101 teachers. It leaves out
        # the coarsest of the five levels.
        pkd=L(PKD)(weight=10.0, levels=["p3", "p4", "p5", "p6"]),
    ),
    inherit=False,
)

optimizer.lr = 0.01
train.output_dir = "output/retinanet_R_50_FPN_2x_pkd"
