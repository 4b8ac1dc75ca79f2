"""RetinaNet R50 learns from RetinaNet R101 by FGD, as in FGD's release.

Values, schedule and inheritance are the release's. The teacher is Detectron2's, trained for 3x with
short sides of 640 to 800 pixels. The release's teacher is a 2x model.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = L(Distiller)(
    student=retinanet(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/retinanet_R_101_FPN_3x.yaml", weights="zoo"),
    methods=L(Methods)(fgd=L(FGD)(weight=1.0)),
    inherit=True,
)
# FGD's released values for RetinaNet (yzd-v/FGD @ c03a6cf).
model.methods.fgd.update(tau=0.5, alpha=1e-3, beta=5e-4, gamma=5e-4, lambd=5e-6)
model.methods.fgd.levels = ["p3", "p4", "p5", "p6", "p7"]

optimizer.lr = 0.01
train.output_dir = "output/retinanet_R_50_FPN_2x_fgd"
