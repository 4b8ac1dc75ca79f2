"""RetinaNet R18 learns from RetinaNet R101 by FGD with UET.

The student inherits the tensors that fit: neither the lateral convolutions of FPN nor P6. The
appendix of UET's paper has students with R18 and R34; their settings and figures are not known.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, MCDropout, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = L(Distiller)(
    student=retinanet(depth=18),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/retinanet_R_101_FPN_3x.yaml", weights="zoo"),
    methods=L(Methods)(fgd=L(FGD)(weight=1.0)),
    inherit=True,
)
# FGD's released values for RetinaNet R50 (yzd-v/FGD @ c03a6cf).
model.methods.fgd.update(tau=0.5, alpha=1e-3, beta=5e-4, gamma=5e-4, lambd=5e-6)
model.methods.fgd.levels = ["p3", "p4", "p5", "p6", "p7"]
# UET has no official code. The target U + F ("sum") of five samples is well attested. The ramp of
# rates has one source. Element-wise dropout and FGD's unchanged values are inferred. U + F is about
# twice as large as F. If FGD's loss is far above the detector's (`distill/fgd/ratio` in the log),
# use `model.methods.fgd.uncertainty.combine=mean`, which is ours and keeps the scale of F.
model.methods.fgd.uncertainty = L(MCDropout)(
    rates=[0.15, 0.20, 0.25, 0.30, 0.35], combine="sum", granularity="element"
)

dataloader.train.mapper.image_format = "RGB"
optimizer.lr = 0.01
# R-18.pkl: run Detectron2's tools/convert-torchvision-to-d2.py on resnet18-f37072fd.pth from
# download.pytorch.org/models; it is not hosted for Detectron2.
train.init_checkpoint = "R-18.pkl"
train.output_dir = "output/retinanet_R_18_FPN_2x_uet_fgd"
