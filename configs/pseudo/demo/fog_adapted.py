"""From clear images, with their labels, to fog, with a teacher's: half of the images each.

Make the labels by labels_fog.py, and give the student that has learned from clear images:

    train.init_checkpoint=output/demo/half/model_final.pth
"""

from detectron2.config import LazyCall as L

from d2kd.data.partial import mix
from d2kd.pseudo.coco import read

from .common import dataloader, evaluate_on, images, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(mix)(
    source=images("demo_train"),
    target=L(read)(path="output/pseudo/demo_fog/labels.json"),
    shares=[1, 1],
)
evaluate_on("demo_fog_val")
dataloader.train.total_batch_size = 8
optimizer.lr = 1e-3
train.max_iter = 400
train.output_dir = "output/pseudo/fog_adapted"
