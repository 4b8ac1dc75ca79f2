"""The large detector, which was trained on clear images only, labels the images in fog.

d2kd label --config-file configs/experiments/pseudo/labels_fog.py
"""

from .labels_train import labels

labels.update(
    images=dict(dataset="demo_fog_train"),
    truth="demo_fog_train_truth",  # for the report only
    output="output/pseudo/demo_fog",
)
