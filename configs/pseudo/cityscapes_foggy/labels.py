"""The detector that has learned from Cityscapes labels the training images in fog.

The high bar of 0.8 is Adaptive Teacher's for this pair, which labels anew as it trains; here it is
done once, or in rounds (docs/pseudo.md). The low bar is ours.

The teacher has the student's architecture, so that whatever is gained comes from adaptation. A
larger one needs its config in `model` and its checkpoint in `weights`, and no other change.

python tools/pseudo_label.py --config-file configs/pseudo/cityscapes_foggy/labels.py --num-gpus 8
"""

from detectron2.config import LazyCall as L

from d2kd.pseudo.fuse import Fusion
from d2kd.pseudo.teachers import LabelTeacher
from d2kd.pseudo.thresholds import FixedBars

_CLASSES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]

labels = dict(
    images=dict(dataset="cityscapes_foggy_train"),
    classes=_CLASSES,
    teachers=dict(
        source=L(LabelTeacher)(
            model="configs/pseudo/cityscapes_foggy/source.py",
            weights="output/pseudo/cityscapes_foggy/source/model_final.pth",
            classes=_CLASSES,
            min_size_test=1024,
            max_size_test=2048,
            batch_size=4,
        )
    ),
    bars=L(FixedBars)(high=0.8, low=0.3),
    fusion=L(Fusion)(),
    output="output/pseudo/cityscapes_foggy/labels",
)
