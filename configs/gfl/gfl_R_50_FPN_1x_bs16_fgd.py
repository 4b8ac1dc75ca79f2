"""GFL R50 <- R101 by FGD, with the release's weights, schedule and inheritance: 43.5 AP there.

Train the teacher first, see gfl_R_101_FPN_2x_ms.py; `model.teacher.weights=PATH` names another
place.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import Methods

from ..common.fgd import fgd
from .gfl_R_50_FPN_1x_bs16 import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(
    student=model,  # first, so that it gets the initial weights that it gets alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "gfl_R_101_FPN_2x_ms.py"),
        weights="output/gfl_R_101_FPN_2x_ms/model_final.pth",
    ),
    methods=L(Methods)(fgd=fgd("gfl")),
    inherit=True,
)

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_fgd"
