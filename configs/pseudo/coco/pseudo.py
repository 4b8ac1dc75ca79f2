"""Stage 1: RetinaNet R50 on a fifth of COCO with its labels and on the rest with a teacher's.

labels.py makes the teacher's labels. The schedule is the usual one of 24 epochs:
retinanet/retinanet_R_50_FPN_2x.py has as many steps on all labels.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2kd import Distiller
from d2kd.data import exclude_images, mix, random_subset
from d2kd.pseudo import load_pseudo_labels

from ...common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common import images, strong

# Without a teacher, the distiller masks the student's losses where labels are missing.
model = L(Distiller)(student=model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py").model)

_labeled = L(random_subset)(dataset=images("coco_2017_train"), share=0.2, seed=0)  # as in share.py
dataloader.train.dataset = L(mix)(
    labeled=_labeled,
    rest=L(exclude_images)(
        dataset=L(load_pseudo_labels)(path="output/pseudo/coco/labels/labels.json"), images=_labeled
    ),
)
strong(dataloader)

optimizer.lr = 0.01
train.output_dir = "output/pseudo/coco/pseudo"
