"""The detector that has learned from Sim10k labels the cars in the training images of Cityscapes,
whose own labels are not looked at.

d2kd label --config-file configs/pseudo/sim10k_cityscapes/labels.py --num-gpus 8
"""

from ..cityscapes_foggy.labels import labels

labels.update(
    images=dict(dataset="cityscapes_train"),
    classes=["car"],
    output="output/pseudo/sim10k_cityscapes/labels",
)
labels.teachers.source.update(
    model="configs/pseudo/sim10k_cityscapes/source.py",
    weights="output/pseudo/sim10k_cityscapes/source/model_final.pth",
    classes=["car"],
)
