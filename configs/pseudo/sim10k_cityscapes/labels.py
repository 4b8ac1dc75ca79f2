"""The detector that was trained on Sim10k labels the cars in the training images of Cityscapes.

The labels of Cityscapes itself are not used.

d2kd label --config-file configs/pseudo/sim10k_cityscapes/labels.py --num-gpus 8
"""

import os

from ..cityscapes_foggy.labels import labels

labels.update(
    images=dict(dataset="cityscapes_train"),
    classes=["car"],
    output="output/pseudo/sim10k_cityscapes/labels",
)
labels.teachers.source.update(
    model=os.path.join(os.path.dirname(__file__), "source.py"),
    weights="output/pseudo/sim10k_cityscapes/source/model_final.pth",
    classes=["car"],
)
