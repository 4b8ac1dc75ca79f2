"""RetinaNet learns by PGD with UET's uncertainty stage."""

from .common import uncertainty
from .pgd import dataloader, lr_multiplier, model, optimizer, train

model.methods.pgd.uncertainty = uncertainty()

train.output_dir = "output/demo/uet/pgd_uet"
