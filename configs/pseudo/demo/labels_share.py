"""A large detector that has seen no more than a fifth of the labels, too, labels all images.

Train it first, by retinanet_share.py. Then

python tools/pseudo_label.py --config-file configs/pseudo/demo/labels_share.py
"""

from .labels_train import labels

labels.teachers.large.model = "configs/pseudo/demo/retinanet_share.py"
labels.teachers.large.weights = "output/pseudo/retinanet_share/model_final.pth"
labels.output = "output/pseudo/demo_share"
