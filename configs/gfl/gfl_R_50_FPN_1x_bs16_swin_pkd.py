"""GFL R50 learns from GFL with Swin-T by PKD. Nothing is inherited.

PKD's paper has Swin teachers, too, but Mask R-CNNs: RetinaNet R50 41.5 AP, FCOS R50 43.9 AP. No
figure is published for this pair. Train the teacher first with gfl_swin_T_FPN_2x_ms.py, or set
`model.teacher.weights=PATH`.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.backbones import LibraryBackbone
from d2kd.methods import PKD, Methods

from ..common.coco_1x_bs16 import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

_swin = gfl(depth=50)
# Not pretrained: the teacher's checkpoint has all weights.
_swin.backbone.bottom_up = L(LibraryBackbone)(name="torchvision/swin_t", pretrained=False)

model = L(Distiller)(
    student=gfl(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(model=_swin, weights="output/gfl_swin_T_FPN_2x_ms/model_final.pth"),
    methods=L(Methods)(
        # CrossKD's weight, where PKD is used next to CrossKD's own loss. The weight for GFL
        # with PKD alone is not known. Four of five levels, as in mmrazor.
        pkd=L(PKD)(weight=6.0, levels=["p3", "p4", "p5", "p6"]),
    ),
    inherit=False,
)

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_swin_pkd"
