"""RetinaNet with MobileNetV2 alone: the student of the distilled recipe with MobileNetV2.

No recipe is published for it. This one is the recipe of R50. The maps have 32, 96 and 1280
channels, as in PGD's students with MobileNetV2. All convolutions are trained. Batch norms are
frozen, unlike in PGD's students.
"""

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet_mobilenet_v2

model = retinanet_mobilenet_v2()

dataloader.train.mapper.image_format = "RGB"
optimizer.lr = 0.01
train.init_checkpoint = ""
train.output_dir = "output/retinanet_mobilenet_v2_FPN_2x"
