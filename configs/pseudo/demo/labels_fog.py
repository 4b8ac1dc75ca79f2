"""The large detector, which has seen clear images only, labels those in fog.

python tools/pseudo_label.py --config-file configs/pseudo/demo/labels_fog.py
"""

from .labels_train import labels

labels.update(
    images=dict(dataset="demo_fog_train"),
    truth="demo_fog_train_truth",  # for the report only
    output="output/pseudo/demo_fog",
)
