"""A student of ten digits learns from the labels of two teachers, each of which knows five digits.

labels_halves.py makes the labels. The bottom-up network starts from the demo's own student, as a
student on COCO starts from ImageNet weights.
"""

import os

from detectron2.config import LazyCall as L

from d2kd.pseudo import load_pseudo_labels

from .common import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(load_pseudo_labels)(path="output/pseudo/demo_halves/labels.json")
train.init_checkpoint = os.path.join(os.path.dirname(__file__), "../dense/backbone.pth")
train.max_iter = 800
dataloader.train.total_batch_size = 8
train.output_dir = "output/pseudo/halves_student"
