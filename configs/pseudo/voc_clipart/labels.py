"""The detector that was trained on VOC labels the training images of Clipart1k.

The high threshold of 0.8 is Adaptive Teacher's for this pair, too.

d2kd label --config-file configs/pseudo/voc_clipart/labels.py --num-gpus 8
"""

import os

from ..cityscapes_foggy.labels import labels

labels.update(
    images=dict(dataset="clipart_train"),
    classes="voc_2007_trainval",
    output="output/pseudo/voc_clipart/labels",
)
labels.teachers.source.update(
    model=os.path.join(os.path.dirname(__file__), "source.py"),
    weights="output/pseudo/voc_clipart/source/model_final.pth",
    classes="voc_2007_trainval",
    min_size_test=800,
    max_size_test=1333,
    batch_size=8,
)
