"""RetinaNet learns by PGD with a temperature for towers without normalization."""

from detectron2.config import LazyCall as L

from d2kd.methods import PGD

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("retinanet", pgd=L(PGD)(tau=4.0, balance=1.0))
model.balance_period = 10

train.output_dir = "output/demo/uet/pgd"
