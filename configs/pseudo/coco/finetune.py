"""Stage 2: the student of pseudo.py on the labels of a fifth, for a while.

As many steps as 4 epochs of all of COCO, at a tenth of the learning rate.
"""

from .share import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "output/pseudo/coco/pseudo/model_final.pth"
train.max_iter = 4 * 7330
optimizer.lr = 0.001
train.output_dir = "output/pseudo/coco/finetune"
