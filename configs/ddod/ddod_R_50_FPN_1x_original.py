"""DDOD R50 as its own authors train it: candidates as in ATSS, and no clipping.

They train in fp16, which is `train.amp.enabled=True` here.
"""

from ..common.coco_1x_bs32 import dataloader, lr_multiplier, optimizer, train
from ..common.models.ddod import ddod

model = ddod(depth=50)
model.update(assigner="atss", box_alpha=0.5)

train.clip_grad_norm = 0.0
train.output_dir = "output/ddod_R_50_FPN_1x_original"
