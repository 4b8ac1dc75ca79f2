"""Stage 2: the student of share_pseudo.py on the labels of a fifth of the images, for a while.

Here it does harm, less of it with a learning rate of 1e-4: see docs/results.md. Stage 1 had these
labels too.
"""

from .share import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "output/pseudo/share_pseudo/model_final.pth"
train.max_iter = 200
optimizer.lr = 5e-4
train.output_dir = "output/pseudo/share_finetune"
