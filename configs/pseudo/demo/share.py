"""A fifth of the labels, and no other image: share_start.py goes on as before."""

from .share_start import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "output/pseudo/share_start/model_final.pth"
train.max_iter = 600
optimizer.lr = 1e-3
dataloader.train.total_batch_size = 8
train.output_dir = "output/pseudo/share"
