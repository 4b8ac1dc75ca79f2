"""RetinaNet learns by CWD with UET's uncertainty stage."""

from .common import uncertainty
from .cwd import dataloader, lr_multiplier, model, optimizer, train

model.methods.cwd.uncertainty = uncertainty()

train.output_dir = "output/demo/uet/cwd_uet"
