"""RetinaNet learns by FGD."""

from detectron2.config import LazyCall as L

from d2kd.methods import FGD

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("retinanet", fgd=L(FGD)(balance=1.0))
model.balance_period = 10

train.output_dir = "output/demo/uet/fgd"
