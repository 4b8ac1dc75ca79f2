"""ATSS R50 <- R101 by PGD, with the release's weights, schedule and inheritance.

The masks are the intended ones, not the released: see ../common/pgd.py. Train the teacher first,
see atss_R_101_FPN_3x_ms.py; `model.teacher.weights=PATH` names another place.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import Methods

from ..common.pgd import pgd
from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(
    student=model,  # first, so that it gets the initial weights that it gets alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "atss_R_101_FPN_3x_ms.py"),
        weights="output/atss_R_101_FPN_3x_ms/model_final.pth",
    ),
    methods=L(Methods)(pgd=pgd("atss")),
    inherit=True,
)

train.output_dir = "output/atss_R_50_FPN_1x_pgd"
