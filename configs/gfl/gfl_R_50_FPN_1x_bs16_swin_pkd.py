"""GFL R50 <- GFL with Swin-T by PKD. Nothing is inherited.

PKD's paper teaches from Swin, too, but by Mask R-CNN: RetinaNet R50 41.5 AP, FCOS R50 43.9. No
figure is published for this pair. Train the teacher first, see gfl_swin_T_FPN_2x_ms.py.
"""

from detectron2.config import LazyCall as L

from d2kd import Teacher

from .gfl_R_50_FPN_1x_bs16_pkd import dataloader, lr_multiplier, model, optimizer, train
from .gfl_swin_T_FPN_2x_ms import model as _teacher

_teacher.backbone.bottom_up.pretrained = False  # the checkpoint has all
model.teacher = L(Teacher)(model=_teacher, weights="output/gfl_swin_T_FPN_2x_ms/model_final.pth")

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_swin_pkd"
