"""A student of ten digits on nothing but the labels of two teachers of five (labels_halves.py).

Its bottom-up network has learned before, as on COCO from ImageNet: here by the demo's own student.
"""

from detectron2.config import LazyCall as L

from d2kd.pseudo.coco import read

from .common import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(read)(path="output/pseudo/demo_halves/labels.json")
train.init_checkpoint = "configs/demo/dense/backbone.pth"
train.max_iter = 800
dataloader.train.total_batch_size = 8
train.output_dir = "output/pseudo/halves_student"
