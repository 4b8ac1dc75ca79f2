"""ATSS R50 <- R101 by RM + PFI. ../common/rm_pfi.py says how sure each part of it is.

The paper's results include ATSS, but its recipe for it is not known: the schedule is that of the
student beside it, and inheriting nothing is ours, too. Train the teacher first, see
atss_R_101_FPN_3x_ms.py; `model.teacher.weights=PATH` names another place.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher

from ..common.rm_pfi import rm_pfi
from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(
    student=model,  # first, so that it gets the initial weights that it gets alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "atss_R_101_FPN_3x_ms.py"),
        weights="output/atss_R_101_FPN_3x_ms/model_final.pth",
    ),
    methods=rm_pfi(),
)

train.output_dir = "output/atss_R_50_FPN_1x_rm_pfi"
