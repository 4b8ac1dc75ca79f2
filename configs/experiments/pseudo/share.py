"""A student on a fifth of the labels and on no other image. It continues from share_start.py."""

from .share_start import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "output/pseudo/share_start/model_final.pth"
train.max_iter = 600
optimizer.lr = 1e-3
dataloader.train.total_batch_size = 8
train.output_dir = "output/pseudo/share"
