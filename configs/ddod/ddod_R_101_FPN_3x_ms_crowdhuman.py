"""DDOD R101 on CrowdHuman, a teacher: train it before ddod_R_50_FPN_1x_crowdhuman_pgd.py.

    python train_net.py --config-file configs/ddod/ddod_R_101_FPN_3x_ms_crowdhuman.py --num-gpus 8

From PGD's release: 36 epochs, short side 480 to 960 pixels. The drops after 24 and 33 epochs and
the absence of clipping are from its COCO teachers. We assume that they hold here, too.
"""

from ..common.crowdhuman_1x import dataloader, lr_multiplier, optimizer, train
from ..common.models.ddod import ddod_crowdhuman

model = ddod_crowdhuman(depth=101)

_resize = dataloader.train.mapper.augmentations[0]
_resize.update(short_edge_length=[480, 960], sample_style="range")

train.max_iter = 36 * 938
train.clip_grad_norm = 0.0
# R-101.pkl: run Detectron2's tools/convert-torchvision-to-d2.py on resnet101-63fe2227.pth from
# download.pytorch.org/models; it is not hosted for Detectron2.
train.init_checkpoint = "R-101.pkl"
lr_multiplier.scheduler.milestones = [24, 33, 36]
lr_multiplier.warmup_length = 500 / train.max_iter
train.output_dir = "output/ddod_R_101_FPN_3x_ms_crowdhuman"
