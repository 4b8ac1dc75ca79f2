"""A fifth of the labels, and a teacher's features in all images: FGD in the same run.

Half the images of a batch, on average, come with labels. Those without take no part in the
detection losses, nor in FGD's masks of objects and background, which need boxes; they do in its
attention and relation terms.
"""

from detectron2.config import LazyCall as L

from d2kd import Teacher
from d2kd.data.partial import load_unlabelled, mix
from d2kd.methods import FGD, Methods

from .share import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(mix)(
    labelled=dataloader.train.dataset,
    unlabelled=L(load_unlabelled)(name="demo_train"),
    shares=[1, 1],
)
model.teacher = L(Teacher)(model="configs/demo/teacher.py", weights="configs/demo/teacher.pth")
model.methods = L(Methods)(fgd=L(FGD)(balance=1.0))
train.output_dir = "output/pseudo/share_distilled"
