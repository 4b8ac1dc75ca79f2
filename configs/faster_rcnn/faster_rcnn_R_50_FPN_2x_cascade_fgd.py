"""Faster R-CNN R50 <- Cascade Mask R-CNN X152 by FGD, with the release's weights and schedule.

A teacher of another architecture: only the neck's maps are compared, and nothing is inherited, as
in the release, whose teacher is a Cascade Mask R-CNN X101-32x4d with deformable convolutions. The
zoo's strongest is this one. It needs a Detectron2 with compiled operators.
"""

from detectron2.config import LazyCall as L

from d2kd import Teacher

from .faster_rcnn_R_50_FPN_2x_fgd import dataloader, lr_multiplier, model, optimizer, train

model.teacher = L(Teacher)(
    model="Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml", weights="zoo"
)
model.inherit = False

train.output_dir = "output/faster_rcnn_R_50_FPN_2x_cascade_fgd"
