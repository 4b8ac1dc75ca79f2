"""RetinaNet learns by plain mimicking with UET's uncertainty stage."""

from .common import uncertainty
from .mimic import dataloader, lr_multiplier, model, optimizer, train

model.methods.mimic.uncertainty = uncertainty()

train.output_dir = "output/demo/uet/mimic_uet"
