"""Stage 1: a fifth of COCO with its labels, the rest with a teacher's (labels.py), for the usual 24
epochs: ../../retinanet/retinanet_R_50_FPN_2x.py has as many steps on all labels.
"""

from detectron2.config import LazyCall as L

from d2kd.data.partial import mix, without
from d2kd.pseudo.coco import read

from .share import dataloader, lr_multiplier, model, optimizer, train

_labelled = dataloader.train.dataset
dataloader.train.dataset = L(mix)(
    labelled=_labelled,
    rest=L(without)(
        dataset=L(read)(path="output/pseudo/coco/labels/labels.json"), images=_labelled
    ),
)
train.max_iter = 24 * 7330
lr_multiplier.warmup_length = 1000 / train.max_iter
train.output_dir = "output/pseudo/coco/pseudo"
