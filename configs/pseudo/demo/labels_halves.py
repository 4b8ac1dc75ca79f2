"""Two teachers that share no class label the training images with all ten digits.

Train them first, by retinanet_low.py and fcos_high.py. Then

python tools/pseudo_label.py --config-file configs/pseudo/demo/labels_halves.py
"""

from .halves_common import teacher
from .labels_train import labels

labels.teachers = dict(
    low=teacher("low", "retinanet_low"),
    high=teacher("high", "fcos_high"),
)
labels.output = "output/pseudo/demo_halves"
