"""GFL with Swin-T, a teacher of another kind: train it before gfl_R_50_FPN_1x_bs16_swin_pkd.py.

    python train_net.py --config-file configs/gfl/gfl_swin_T_FPN_2x_ms.py --num-gpus 8

Sizes and schedule are from the R101 recipe. AdamW, its learning rate and its weight decay are the
ones that Swin's authors use for detectors. No figure is published for this detector.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2kd.backbones import LibraryBackbone

from ..common.coco_2x_ms import dataloader, lr_multiplier, train
from ..common.models.gfl import gfl

model = gfl(depth=50)
# torchvision downloads the weights. `model.backbone.bottom_up.pretrained=PATH` reads a file.
model.backbone.bottom_up = L(LibraryBackbone)(name="torchvision/swin_t", pretrained=True)

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 1e-4
optimizer.weight_decay = 0.05

train.init_checkpoint = ""
train.output_dir = "output/gfl_swin_T_FPN_2x_ms"
