"""AutoAssign R50 alone: the student of the PGD recipe in this folder. Needs `d2kd.detectors`.

The recipe is from PGD's release. Upstream trains at batch 16 with learning rate 0.01, 1,000 steps
of warm-up, no clipping and no weight decay on normalization, from Caffe's ImageNet weights (BGR).
It reports that the AP varies by 0.3 from run to run.
"""

from ..common.coco_1x_bs32 import dataloader, lr_multiplier, optimizer, train
from ..common.models.autoassign import autoassign

model = autoassign(depth=50)

train.output_dir = "output/autoassign_R_50_FPN_1x"
