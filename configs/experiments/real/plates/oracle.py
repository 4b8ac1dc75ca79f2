"""The upper bound: the student has the labels of the dash-cam, too."""

from detectron2.config import LazyCall as L

from d2kd.data import mix

from .common import SOURCE, images
from .source import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(mix)(
    source=images(SOURCE), target=images("plates_ro_train"), shares=[1, 1]
)

train.output_dir = "output/real/plates/oracle"
