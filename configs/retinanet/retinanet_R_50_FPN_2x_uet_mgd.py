"""RetinaNet R50 learns from RetinaNet R101 by MGD with UET.

Whether UET's paper combines the two is not known. All but UET is as in
retinanet_R_50_FPN_2x_mgd.py.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import MGD, MCDropout, Methods

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
# UET has no official code. The target U + F ("sum") of five samples is well attested. The ramp of
# rates has one source. Element-wise dropout and MGD's unchanged values are inferred. U + F is about
# twice as large as F, and the loss about four times at first:
# `model.methods.mgd.uncertainty.combine=mean`, which is ours, keeps the teacher's scale.
model.methods.mgd.uncertainty = L(MCDropout)(
    rates=[0.15, 0.20, 0.25, 0.30, 0.35], combine="sum", granularity="element"
)

optimizer.lr = 0.01
train.output_dir = "output/retinanet_R_50_FPN_2x_uet_mgd"
