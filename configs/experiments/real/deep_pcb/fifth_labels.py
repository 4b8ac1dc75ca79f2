"""The teacher labels all training images, as if they had no labels.

d2kd label --config-file configs/experiments/real/deep_pcb/fifth_labels.py

The teacher is the one of fifth_teacher.py. For a second round, the student of fifth_pseudo.py
labels the images; see fifth_second.py.
"""

import os

from ..common import labels as make_labels

labels = make_labels(
    "deep_pcb_train",
    teacher=os.path.join(os.path.dirname(__file__), "teacher.py"),
    weights="output/real/deep_pcb/fifth_teacher/model_final.pth",
    classes="deep_pcb_train",
    output="output/real/deep_pcb/labels_fifth",
)
