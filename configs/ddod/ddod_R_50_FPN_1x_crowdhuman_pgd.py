"""DDOD R50 <- R101 on CrowdHuman by PGD, with the release's weights and inheritance.

The masks are the intended ones, not the released: see ../common/pgd.py. Train the teacher first,
see ddod_R_101_FPN_3x_ms_crowdhuman.py; `model.teacher.weights=PATH` names another place. The
release's own config of this name trains on COCO by mistake; this is what it means.
"""

import os

from ..common.pgd import pgd
from .ddod_R_50_FPN_1x_crowdhuman import dataloader, lr_multiplier, optimizer, train
from .ddod_R_50_FPN_1x_crowdhuman import model as _student
from .ddod_R_50_FPN_1x_pgd import model

model.student = _student
model.teacher.model = os.path.join(os.path.dirname(__file__), "ddod_R_101_FPN_3x_ms_crowdhuman.py")
model.teacher.weights = "output/ddod_R_101_FPN_3x_ms_crowdhuman/model_final.pth"
model.methods.pgd = pgd("ddod_crowdhuman")

train.output_dir = "output/ddod_R_50_FPN_1x_crowdhuman_pgd"
