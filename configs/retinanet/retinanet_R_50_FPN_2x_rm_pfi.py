"""RetinaNet R50 learns from RetinaNet R101 by rank mimicking (RM) and PFI.

24 epochs, batch 16 and learning rate 0.01 are from mmrazor's pull request 107, clipping and warm-up
from coco_2x.py. mmrazor's teacher is a 2x model, Detectron2's a 3x model. Whether the paper's
student inherits its teacher's head is not known. This one does not.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, Teacher
from d2kd.methods import PFI, Methods, RankMimic

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = L(Distiller)(
    student=retinanet(depth=50),  # built first: same initial weights as alone
    teacher=L(Teacher)(model="COCO-Detection/retinanet_R_101_FPN_3x.yaml", weights="zoo"),
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

optimizer.lr = 0.01
train.output_dir = "output/retinanet_R_50_FPN_2x_rm_pfi"
