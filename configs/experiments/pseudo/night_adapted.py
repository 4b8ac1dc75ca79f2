"""A student moves from clear images to night. Half of the images are clear, with their true labels.
The other half show night and have a teacher's labels.

Make these labels with labels_night.py, and start from a student that was trained on clear images:

    train.init_checkpoint=output/demo/half/model_final.pth
"""

from detectron2.config import LazyCall as L

from d2kd.data import mix
from d2kd.pseudo import load_pseudo_labels

from .common import dataloader, evaluate_on, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(mix)(
    source=images("demo_train"),
    target=L(load_pseudo_labels)(path="output/pseudo/demo_night/labels.json"),
    shares=[1, 1],
)
evaluate_on("demo_night_val")
dataloader.train.total_batch_size = 8
optimizer.lr = 1e-3
train.max_iter = 400
train.output_dir = "output/pseudo/night_adapted"
