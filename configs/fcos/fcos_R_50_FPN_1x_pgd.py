"""FCOS R50 <- R101 by PGD, with the release's weights, schedule and inheritance.

The masks are the intended ones, not the released: see ../common/pgd.py. Train the teacher first,
see fcos_R_101_FPN_3x_ms.py; `model.teacher.weights=PATH` names another place.

Detectron2's FCOS on both sides, which is not the release's; see fcos_R_50_FPN_1x.py.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import Methods

from ..common.pgd import pgd
from .fcos_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(
    student=model,  # first, so that it gets the initial weights that it gets alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "fcos_R_101_FPN_3x_ms.py"),
        weights="output/fcos_R_101_FPN_3x_ms/model_final.pth",
    ),
    methods=L(Methods)(pgd=pgd("fcos")),
    inherit=True,
    input_format="RGB",  # which FCOS does not say
)

train.output_dir = "output/fcos_R_50_FPN_1x_pgd"
