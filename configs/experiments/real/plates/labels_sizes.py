"""The teacher labels each image of the dash-cam at two sizes, and the boxes are fused.

Plates of the dash-cam are small. In images of their full size, 640 pixels, the teacher finds more
of the small ones than at the size of its training, 480 pixels.

d2kd label --config-file configs/experiments/real/plates/labels_sizes.py
"""

from copy import deepcopy

from .labels import labels

labels.teachers.full = deepcopy(labels.teachers.large)
labels.teachers.full.update(min_size_test=640, max_size_test=640)
labels.output = "output/real/plates/labels_sizes"
