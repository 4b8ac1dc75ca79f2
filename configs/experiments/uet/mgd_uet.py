"""RetinaNet learns by MGD with UET's uncertainty stage."""

from .common import uncertainty
from .mgd import dataloader, lr_multiplier, model, optimizer, train

model.methods.mgd.uncertainty = uncertainty()

train.output_dir = "output/demo/uet/mgd_uet"
