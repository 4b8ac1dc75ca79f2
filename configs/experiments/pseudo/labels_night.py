"""The large detector, which was trained on clear images only, labels the images in night.

d2kd label --config-file configs/experiments/pseudo/labels_night.py
"""

from .labels_train import labels

labels.update(
    images=dict(dataset="demo_night_train"),
    truth="demo_night_train_truth",  # for the report only
    output="output/pseudo/demo_night",
)
