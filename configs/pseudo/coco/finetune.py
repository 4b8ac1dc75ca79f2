"""Stage 2: the student of pseudo.py trains on the labels of a fifth of COCO, and on nothing else.

It trains for as many steps as 4 epochs of all of COCO have, at a tenth of the learning rate.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2kd import Distiller
from d2kd.data import random_subset

from ...common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common import images, strong

# Without a teacher, the distiller masks the student's losses where labels are missing.
model = L(Distiller)(student=model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py").model)

dataloader.train.dataset = L(random_subset)(dataset=images("coco_2017_train"), share=0.2, seed=0)
strong(dataloader)

optimizer.lr = 0.001
train.init_checkpoint = "output/pseudo/coco/pseudo/model_final.pth"
lr_multiplier.warmup_length = 1000 / (24 * 7330 // 3)  # the same as in share.py
train.max_iter = 4 * 7330
train.output_dir = "output/pseudo/coco/finetune"
