"""The mean teacher of night_online.py, which begins with the labels that labels_night.py made.

See fog_online_warm.py. Start from the same student:

    train.init_checkpoint=output/demo/half/model_final.pth
"""

from .fog_online_warm import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.target.images.path = "output/pseudo/demo_night/labels.json"
dataloader.test.dataset.names = "demo_night_val"
train.output_dir = "output/pseudo/night_online_warm"
