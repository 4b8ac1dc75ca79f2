"""The teacher of few_teacher.py labels the images of the dash-cam, at two sizes as labels_sizes.py.

d2kd label --config-file configs/experiments/real/plates/few_labels.py
"""

from .labels_sizes import labels

for _teacher in labels.teachers.values():
    _teacher.weights = "output/real/plates/few_teacher/model_final.pth"
labels.output = "output/real/plates/labels_few"
