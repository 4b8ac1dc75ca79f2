"""The teacher labels the images of the dash-cam.

d2kd label --config-file configs/experiments/real/plates/labels.py
"""

import os

from ..common import labels as make_labels

labels = make_labels(
    "plates_ro_train",
    teacher=os.path.join(os.path.dirname(__file__), "teacher.py"),
    weights="output/real/plates/teacher/model_final.pth",
    classes="plates_us",
    output="output/real/plates/labels",
)
