"""A student of ten digits on nothing but the labels of two teachers of five (labels_halves.py)."""

from detectron2.config import LazyCall as L

from d2kd.pseudo.coco import read

from .common import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(read)(path="output/pseudo/demo_halves/labels.json")
train.max_iter = 1200
dataloader.train.total_batch_size = 8
train.output_dir = "output/pseudo/halves_student"
