"""Two teachers of different architectures know half of the digits each: data and schedule.

The data set of a teacher has no boxes of the other half of the digits. To this teacher they are
background.
"""

import os

from detectron2.config import LazyCall as L

from d2kd.data import register_class_subset
from d2kd.data.demo import CLASSES
from d2kd.pseudo import LabelTeacher

from ...demo.common import dataloader, fcos, lr_multiplier, optimizer, retinanet, train

HALVES = dict(low=CLASSES[:5], high=CLASSES[5:])
LARGE = dict(blocks=[2, 2, 2], width=48, neck=48, convs=2)  # as in demo/teacher.py

train.max_iter = 1500
train.eval_period = 0
train.checkpointer.period = 500
dataloader.evaluator.output_dir = "${train.output_dir}"  # a COCO JSON of this half is written there


def learn(dataloader, half):
    """Train and validate on the boxes of one half of the digits."""
    for split in ("train", "val"):
        register_class_subset(f"demo_{split}_{half}", f"demo_{split}", HALVES[half])
    dataloader.train.dataset.update(names=f"demo_train_{half}", filter_empty=False)
    dataloader.test.dataset.names = f"demo_val_{half}"


def teacher(half, name):
    """The detector that the config `name` trains, as a teacher that labels."""
    return L(LabelTeacher)(
        model=os.path.join(os.path.dirname(__file__), f"{name}.py"),
        weights=f"output/pseudo/{name}/model_final.pth",
        classes=list(HALVES[half]),
        categories={digit: digit for digit in HALVES[half]},
        min_size_test=0,
    )
