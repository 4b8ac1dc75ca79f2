"""The detector that was trained on Cityscapes labels the training images in fog.

The high threshold of 0.8 is Adaptive Teacher's for this pair. Adaptive Teacher labels the images
again and again while it trains. Here the labels are made once, or in rounds (docs/pseudo.md). The
low threshold is ours.

The teacher has the student's architecture, so that any gain comes from adaptation. For a larger
teacher, set its config as `model` and its checkpoint as `weights`.

d2kd label --config-file configs/pseudo/cityscapes_foggy/labels.py --num-gpus 8
"""

import os

from detectron2.config import LazyCall as L

from d2kd.pseudo import FixedThresholds, Fusion, LabelTeacher

_CLASSES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]

labels = dict(
    images=dict(dataset="cityscapes_foggy_train"),
    classes=_CLASSES,
    teachers=dict(
        source=L(LabelTeacher)(
            model=os.path.join(os.path.dirname(__file__), "source.py"),
            weights="output/pseudo/cityscapes_foggy/source/model_final.pth",
            classes=_CLASSES,
            min_size_test=1024,
            max_size_test=2048,
            batch_size=4,
        )
    ),
    thresholds=L(FixedThresholds)(high=0.8, low=0.3),
    fusion=L(Fusion)(),
    output="output/pseudo/cityscapes_foggy/labels",
)
