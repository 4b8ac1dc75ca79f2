"""RetinaNet learns by CWD."""

from detectron2.config import LazyCall as L

from d2kd.methods import CWD

from .common import dataloader, distilled, lr_multiplier, optimizer, train

model = distilled("retinanet", cwd=L(CWD)(balance=1.0))
model.balance_period = 10

train.output_dir = "output/demo/uet/cwd"
