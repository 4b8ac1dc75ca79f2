"""RetinaNet learns by PFI with its scale-free reduction."""

from detectron2.config import LazyCall as L

from d2kd.methods import PFI

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("retinanet", pfi=L(PFI)(reduction="relative", balance=1.0))
model.balance_period = 10

train.output_dir = "output/demo/uet/pfi"
