"""A large detector that was trained on a fifth of the labels only labels all images.

Train it first with retinanet_share.py. Then run

d2kd label --config-file configs/experiments/pseudo/labels_share.py
"""

import os

from .labels_train import labels

labels.teachers.large.model = os.path.join(os.path.dirname(__file__), "retinanet_share.py")
labels.teachers.large.weights = "output/pseudo/retinanet_share/model_final.pth"
labels.output = "output/pseudo/demo_share"
