"""RetinaNet R34 learns from RetinaNet R101 by FGD.

No setting is published. The student inherits the tensors that fit: neither the lateral convolutions
of FPN nor P6.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = L(Distiller)(
    student=retinanet(depth=34),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/retinanet_R_101_FPN_3x.yaml", weights="zoo"),
    methods=L(Methods)(fgd=L(FGD)(weight=1.0)),
    inherit=True,
)
# FGD's released values for RetinaNet R50 (yzd-v/FGD @ c03a6cf).
model.methods.fgd.update(tau=0.5, alpha=1e-3, beta=5e-4, gamma=5e-4, lambd=5e-6)
model.methods.fgd.levels = ["p3", "p4", "p5", "p6", "p7"]

dataloader.train.mapper.image_format = "RGB"
optimizer.lr = 0.01
# R-34.pkl: run Detectron2's tools/convert-torchvision-to-d2.py on resnet34-b627a593.pth from
# download.pytorch.org/models; it is not hosted for Detectron2.
train.init_checkpoint = "R-34.pkl"
train.output_dir = "output/retinanet_R_34_FPN_2x_fgd"
