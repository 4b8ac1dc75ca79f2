"""RetinaNet R50 learns from a ConvNeXt-S of ImageNet, which is no detector, by PKD.

Nothing is inherited. Nothing is published for this pair, and we have not run it: weight and levels
are ours. The weights are timm's file (docs/backbones.md).
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, FeatureTeacher
from d2kd.methods import PKD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = L(Distiller)(
    student=retinanet(depth=50),  # built first: same initial weights as alone
    teacher=L(FeatureTeacher)(
        backbone="timm/convnext_small.fb_in22k",
        weights="output/imagenet/convnext_small.safetensors",
        out_features=["res3", "res4", "res5"],
    ),
    methods=L(Methods)(
        pkd=L(PKD)(weight=10.0, levels={"p3": "res3", "p4": "res4", "p5": "res5"}),
    ),
    inherit=False,
)

optimizer.lr = 0.01
train.output_dir = "output/retinanet_R_50_FPN_2x_convnext_pkd"
