"""COCO at batch 32 for 12 epochs ("1x"), for students alone and with a teacher. Detectron2 only.

From PGD's release: SGD with learning rate 0.02, / 10 after 8 and 11 epochs, warm-up of 500 steps
from 0.001 of it, gradient norm clipped at 35, weight decay on everything, normalisation included;
short side 800, long side at most 1333 pixels, flips; ImageNet weights of torchvision, which take
RGB. The release trains the plain ATSS, FCOS and AutoAssign, and distils AutoAssign, in fp16; here
that is `train.amp.enabled=True` (and `model.teacher.dtype=float16`) for any.
"""

from .coco import dataloader, lr_multiplier, optimizer, train

dataloader.train.total_batch_size = 32
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations[0].short_edge_length = [800]

optimizer.lr = 0.02
optimizer.params.weight_decay_norm = None  # as all else

# 12 epochs * 3,665 steps; an epoch is 117,266 images with boxes in batches of 32.
train.max_iter = 12 * 3665
train.eval_period = train.checkpointer.period = 3665
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
lr_multiplier.scheduler.milestones = [8, 11, 12]
lr_multiplier.warmup_length = 500 / train.max_iter
