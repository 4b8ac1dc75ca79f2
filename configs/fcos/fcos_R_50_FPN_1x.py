"""FCOS R50 with the recipe of PGD's students: the student of fcos_R_50_FPN_1x_pgd.py.

The recipe is the release's, the detector is Detectron2's. The release's has learned scales of the
levels, an IoU loss weighted by centerness, scores p * centerness, thresholds on p, and NMS at 0.5;
fcos_R_50_FPN_2x.py lists what Detectron2 does. So the release's AP need not be met.
"""

from detectron2 import model_zoo

from ..common.coco_pgd import dataloader, lr_multiplier, optimizer, train
from ..common.dense import torchvision_pixels

model = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
torchvision_pixels(model)

train.output_dir = "output/fcos_R_50_FPN_1x"
