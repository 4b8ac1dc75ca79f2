"""The large detector, which has seen clear images only, labels those in night.

python tools/pseudo_label.py --config-file configs/pseudo/demo/labels_night.py
"""

from .labels_train import labels

labels.update(
    images=dict(dataset="demo_night_train"),
    truth="demo_night_train_truth",  # for the report only
    output="output/pseudo/demo_night",
)
