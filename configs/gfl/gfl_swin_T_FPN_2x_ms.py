"""GFL with Swin-T, a teacher of another kind: train it first.

    python train_net.py --config-file configs/gfl/gfl_swin_T_FPN_2x_ms.py --num-gpus 8

Sizes and schedule are those of the R101; AdamW, its learning rate and decay are those that Swin's
authors fine-tune detectors with. No figure is published for this detector.
"""

from detectron2 import model_zoo

from ..common.small import library
from .gfl_R_101_FPN_2x_ms import dataloader, lr_multiplier, model, train

library(model, "swin_t")

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 1e-4
optimizer.weight_decay = 0.05

train.init_checkpoint = ""
train.output_dir = "output/gfl_swin_T_FPN_2x_ms"
