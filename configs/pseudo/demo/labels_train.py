"""The large detector labels the training images, as if they had no labels.

python tools/pseudo_label.py --config-file configs/pseudo/demo/labels_train.py
"""

from detectron2.config import LazyCall as L

from d2kd.pseudo.fuse import Fusion
from d2kd.pseudo.teachers import LabelTeacher
from d2kd.pseudo.thresholds import FixedBars

labels = dict(
    images=dict(dataset="demo_train"),
    classes="demo_train",
    teachers=dict(
        large=L(LabelTeacher)(
            model="configs/demo/teacher.py",
            weights="configs/demo/teacher.pth",
            classes="demo_train",
            min_size_test=0,  # images are 128 pixels wide, in training too
        )
    ),
    bars=L(FixedBars)(high=0.5, low=0.3),
    fusion=L(Fusion)(),
    output="output/pseudo/demo_train",
    truth="demo_train",
)
