"""The student alone on a fifth of the labels, and on no other image."""

from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts

from d2kd.data import random_subset

from .student_wide import dataloader, lr_multiplier, model, optimizer, train

images = L(get_detection_dataset_dicts)(names="deep_pcb_train", filter_empty=False)
dataloader.train.dataset = L(random_subset)(dataset=images, share=0.2, seed=0)

train.output_dir = "output/real/deep_pcb/fifth"
