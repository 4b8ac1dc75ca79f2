"""A student on a fifth of the labels that also learns from a teacher's features in all images.

On average, half of the images in a batch have labels. The other images add nothing to the detection
losses, nor to FGD's terms over objects and background, which need boxes. They do add to FGD's
attention and relation terms.
"""

import os

from detectron2.config import LazyCall as L

from d2kd import Teacher
from d2kd.data import load_unlabeled, mix
from d2kd.methods import FGD, Methods

from .share import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(mix)(
    labeled=dataloader.train.dataset,
    unlabeled=L(load_unlabeled)(name="demo_train"),
    shares=[1, 1],
)
_demo = os.path.join(os.path.dirname(__file__), "../../demo")
model.teacher = L(Teacher)(
    model=os.path.join(_demo, "teacher.py"), weights=os.path.join(_demo, "teacher.pth")
)
model.methods = L(Methods)(fgd=L(FGD)(balance=1.0))
train.output_dir = "output/pseudo/share_distilled"
