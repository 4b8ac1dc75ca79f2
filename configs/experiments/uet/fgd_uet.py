"""RetinaNet learns by FGD with UET's uncertainty stage."""

from .common import uncertainty
from .fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods.fgd.uncertainty = uncertainty()

train.output_dir = "output/demo/uet/fgd_uet"
