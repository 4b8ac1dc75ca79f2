"""The large detector labels the training images, as if they had no labels.

d2kd label --config-file configs/experiments/pseudo/labels_train.py
"""

import os

from detectron2.config import LazyCall as L

from d2kd.pseudo import FixedThresholds, Fusion, LabelTeacher

_demo = os.path.join(os.path.dirname(__file__), "../../demo")

labels = dict(
    images=dict(dataset="demo_train"),
    classes="demo_train",
    teachers=dict(
        large=L(LabelTeacher)(
            model=os.path.join(_demo, "teacher.py"),
            weights=os.path.join(_demo, "teacher.pth"),
            classes="demo_train",
            min_size_test=0,  # no resizing: the images are 128 pixels wide, as in training
        )
    ),
    thresholds=L(FixedThresholds)(high=0.5, low=0.3),
    fusion=L(Fusion)(),
    output="output/pseudo/demo_train",
    truth="demo_train",
)
