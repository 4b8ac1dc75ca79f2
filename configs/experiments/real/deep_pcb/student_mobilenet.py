"""A student with ImageNet weights: MobileNetV2 up to stride 16.

For the same network with random weights, all of which are trained:
model.backbone.bottom_up.pretrained=False model.backbone.bottom_up.freeze_at=0 optimizer.lr=2e-3
"""

import os

from detectron2.config import LazyCall as L

from d2kd.backbones import LibraryBackbone

from ..common import WEIGHTS, schedule
from .common import LEVELS, dataloader, detector

model = detector(
    L(LibraryBackbone)(
        name="timm/mobilenetv2_100",
        out_features=LEVELS,
        pretrained=os.path.join(WEIGHTS, "mobilenet_v2.safetensors"),
        freeze_at=2,
    ),
    neck=32,
    convs=2,
)
optimizer, lr_multiplier, train = schedule()

optimizer.lr = 5e-4
train.amp.enabled = False  # on a CPU, MobileNet is slower with it
train.output_dir = "output/real/deep_pcb/student_mobilenet"
