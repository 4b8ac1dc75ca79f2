"""The teacher labels all training images, as if they had no labels.

d2kd label --config-file configs/experiments/real/neu_det/fifth_labels.py

The teacher is the one of fifth_teacher.py. For the teacher that has seen all labels:
labels.teachers.large.weights=output/real/neu_det/teacher/model_final.pth
labels.output=output/real/neu_det/labels_all
"""

import os

from ..common import labels as make_labels

labels = make_labels(
    "neu_det_train",
    teacher=os.path.join(os.path.dirname(__file__), "teacher.py"),
    weights="output/real/neu_det/fifth_teacher/model_final.pth",
    classes="neu_det_train",
    output="output/real/neu_det/labels_fifth",
)
