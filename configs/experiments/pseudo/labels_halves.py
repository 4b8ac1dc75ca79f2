"""Two teachers that have no class in common label the training images with all ten digits.

Train the teachers first with retinanet_low.py and fcos_high.py. Then run

d2kd label --config-file configs/experiments/pseudo/labels_halves.py
"""

from .halves_common import teacher
from .labels_train import labels

labels.teachers = dict(
    low=teacher("low", "retinanet_low"),
    high=teacher("high", "fcos_high"),
)
labels.output = "output/pseudo/demo_halves"
