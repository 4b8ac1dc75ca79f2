"""GFL R18 learns from GFL R101 by FGD.

No setting is published. The student inherits the tensors that fit: not the lateral convolutions of
FPN. Train the teacher first with gfl_R_101_FPN_2x_ms.py, or set `model.teacher.weights=PATH`.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, Methods

from ..common.coco_1x_bs16 import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = L(Distiller)(
    student=gfl(depth=18),  # built first: same initial weights as alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "gfl_R_101_FPN_2x_ms.py"),
        weights="output/gfl_R_101_FPN_2x_ms/model_final.pth",
    ),
    methods=L(Methods)(fgd=L(FGD)(weight=1.0)),
    inherit=True,
)
# FGD's released values for GFL R50 (yzd-v/FGD @ c03a6cf).
model.methods.fgd.update(tau=0.5, alpha=1e-3, beta=5e-4, gamma=5e-4, lambd=5e-6)
model.methods.fgd.levels = ["p3", "p4", "p5", "p6", "p7"]

# R-18.pkl: run Detectron2's tools/convert-torchvision-to-d2.py on resnet18-f37072fd.pth from
# download.pytorch.org/models; it is not hosted for Detectron2.
train.init_checkpoint = "R-18.pkl"
train.output_dir = "output/gfl_R_18_FPN_1x_bs16_fgd"
