"""RetinaNet R50 <- R101 by RM + PFI. ../common/rm_pfi.py says how sure each part of it is.

The schedule (24 epochs, batch 16, learning rate 0.01) is that of mmrazor's pull request 107, whose
teacher is a 2x model; Detectron2's is 3x. Clipping and warm-up are ../common/coco.py's. Whether the
paper's student inherits its teacher's head is not known; here it does not.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher

from ..common.rm_pfi import rm_pfi
from .retinanet_R_50_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(
    student=model,  # first, so that it gets the initial weights that it gets alone
    teacher=L(Teacher)(model="COCO-Detection/retinanet_R_101_FPN_3x.yaml", weights="zoo"),
    methods=rm_pfi(),
)

train.output_dir = "output/retinanet_R_50_FPN_2x_rm_pfi"
