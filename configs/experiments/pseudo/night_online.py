"""The mean teacher of fog_online.py labels the night images. Compare with night_adapted.py.

Start from the same student as night_adapted.py, which was trained on clear images:

    train.init_checkpoint=output/demo/half/model_final.pth
"""

from .fog_online import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.target.name = "demo_night_train"
dataloader.test.dataset.names = "demo_night_val"
train.output_dir = "output/pseudo/night_online"
