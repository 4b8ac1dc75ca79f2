"""The same for 36 epochs ("3x") on many sizes ("ms"), without clipping: for R101 teachers.

From PGD's release: drops after 24 and 33 epochs, short side 480 to 960, long side at most 1333
pixels. That every size between is equally likely is our reading.

R-101.pkl: nobody hosts torchvision's ResNet-101 for Detectron2. Download resnet101-63fe2227.pth
from download.pytorch.org/models and run Detectron2's tools/convert-torchvision-to-d2.py on it.
"""

from .coco_pgd import dataloader, lr_multiplier, optimizer, train

dataloader.train.mapper.augmentations[0].short_edge_length = [480, 960]
dataloader.train.mapper.augmentations[0].sample_style = "range"

train.max_iter = 36 * 3665
train.clip_grad_norm = 0.0
train.init_checkpoint = "R-101.pkl"
lr_multiplier.scheduler.milestones = [24, 33, 36]
lr_multiplier.warmup_length = 500 / train.max_iter
