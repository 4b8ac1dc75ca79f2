"""RetinaNet learns by PKD with UET's uncertainty stage."""

from .common import uncertainty
from .pkd import dataloader, lr_multiplier, model, optimizer, train

model.methods.pkd.uncertainty = uncertainty()

train.output_dir = "output/demo/uet/pkd_uet"
