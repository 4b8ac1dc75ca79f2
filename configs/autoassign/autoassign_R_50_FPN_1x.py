"""AutoAssign R50 alone: the student of the configs beside it. Needs `d2kd.detectors` only.

The recipe is that of PGD's release. Upstream trains at batch 16 with learning rate 0.01, 1,000
steps of warm-up, no clipping and no weight decay on normalisation, from Caffe's ImageNet weights
(BGR); it reports that the AP varies by 0.3 from run to run.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from d2kd.detectors import AutoAssign

from ..common.coco_pgd import dataloader, lr_multiplier, optimizer, train
from ..common.dense import dense

model = dense(AutoAssign, conv_bias=True, prior_prob=0.02, box_bias=4.0)
model.backbone.top_block = L(LastLevelP6P7)(  # unlike the others: from C5, with a ReLU before P7
    in_channels=2048, out_channels="${..out_channels}", in_feature="res5"
)

train.output_dir = "output/autoassign_R_50_FPN_1x"
