"""RetinaNet R50 learns from DINOv3's ViT-S, which is no detector, by PKD. Nothing is inherited.

Nothing is published for this pair, and we have not run it: weight and levels are ours. The weights
are timm's file (docs/backbones.md).
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller, FeatureTeacher
from d2kd.methods import PKD, Methods

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = L(Distiller)(
    student=retinanet(depth=50),  # built first: same initial weights as alone
    teacher=L(FeatureTeacher)(
        backbone="timm/vit_small_patch16_dinov3.lvd1689m",
        weights="output/imagenet/vit_small_patch16_dinov3.safetensors",
    ),
    methods=L(Methods)(
        # The patches have stride 16. PKD resizes the student's maps of stride 8 and 32 to them.
        pkd=L(PKD)(weight=10.0, levels={"p3": "patches", "p4": "patches", "p5": "patches"}),
    ),
    inherit=False,
)

optimizer.lr = 0.01
train.output_dir = "output/retinanet_R_50_FPN_2x_dinov3_pkd"
