"""GFL R50 learns from GFL R101 by rank mimicking (RM) and PFI.

The paper has results for GFL, but its recipe is not known. The schedule is the one of the student
alone, and nothing is inherited. Both choices are ours. Train the teacher first with
gfl_R_101_FPN_3x_ms.py, or set `model.teacher.weights=PATH`.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import PFI, Methods, RankMimic

from ..common.coco_1x_bs32 import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = L(Distiller)(
    student=gfl(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(
        model=os.path.join(os.path.dirname(__file__), "gfl_R_101_FPN_3x_ms.py"),
        weights="output/gfl_R_101_FPN_3x_ms/model_final.pth",
    ),
    methods=L(Methods)(
        # There is no official code (arXiv 2112.04840). The weights 4 and 1.5 agree in two
        # independent implementations and are probably the paper's. The losses are from
        # mmrazor's pull request 107, with three differences. Candidates keep their identity,
        # where mmrazor sorts the scores of each network. Localization is ranked too, as in the
        # paper, but by the IoU, since the paper's formula is not known. PFI divides by the batch
        # size once, mmrazor twice.
        rank_mimic=L(RankMimic)(weight=4.0, scores="sigmoid", tau=1.0),
        pfi=L(PFI)(weight=1.5, scores="logit", reduction="norm"),
    ),
)

train.output_dir = "output/gfl_R_50_FPN_1x_rm_pfi"
