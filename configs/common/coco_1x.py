"""COCO at batch 16 for 12 epochs ("1x"), for GFL alone and by FGD, UET, PKD, CWD and LD.

Learning rate 0.01, / 10 after 8 and 11 epochs, and clipping at 35 as in FGD's release; GFL's own
recipe, and LD's, does not clip. All else is ./coco_pgd.py's, at half the batch and learning rate:
RGB images for torchvision's weights, short side 800, warm-up of 500 steps, decay of everything.
"""

from .coco_pgd import dataloader, lr_multiplier, optimizer, train

dataloader.train.total_batch_size = 16
optimizer.lr = 0.01

# 12 epochs * 7,330 steps; an epoch is 117,266 images with boxes in batches of 16.
train.max_iter = 12 * 7330
train.eval_period = train.checkpointer.period = 7330
lr_multiplier.warmup_length = 500 / train.max_iter
