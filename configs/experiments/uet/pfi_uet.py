"""RetinaNet learns by PFI with UET's uncertainty stage."""

from .common import uncertainty
from .pfi import dataloader, lr_multiplier, model, optimizer, train

model.methods.pfi.uncertainty = uncertainty()

train.output_dir = "output/demo/uet/pfi_uet"
