"""DDOD R50 as its own authors train it: candidates as in ATSS, no clipping.

They train in fp16, which is `train.amp.enabled=True` here.
"""

from .ddod_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner = "atss"
model.box_alpha = 0.5

train.clip_grad_norm = 0.0
train.output_dir = "output/ddod_R_50_FPN_1x_original"
