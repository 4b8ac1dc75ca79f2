"""COCO for 24 epochs ("2x") at batch 16 on many image sizes ("ms"), for teachers of GFL.

The published teacher of FGD, UET, PKD and LD is mmdetection's. Short sides from 480 to 800 pixels,
no clipping and drops after 16 and 22 epochs are its recipe as we recall it. All else is as in
coco_1x_bs16.py: RGB images, learning rate 0.01, warm-up of 500 steps, weight decay on everything.
R-101.pkl: run Detectron2's tools/convert-torchvision-to-d2.py on resnet101-63fe2227.pth from
download.pytorch.org/models; it is not hosted for Detectron2.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
optimizer = model_zoo.get_config("common/optim.py").SGD
train = model_zoo.get_config("common/train.py").train

dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.image_format = "RGB"
_resize = dataloader.train.mapper.augmentations[0]
_resize.update(short_edge_length=[480, 800], sample_style="range")

optimizer.lr = 0.01
optimizer.params.weight_decay_norm = None  # normalization decays as all else

# 24 epochs of 7,330 steps; an epoch is 117,266 images with boxes in batches of 16.
train.max_iter = 24 * 7330
train.eval_period = train.checkpointer.period = 7330
train.init_checkpoint = "R-101.pkl"
train.update(clip_grad_norm=0.0, seed=1)
train.amp.dtype = "float16"

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[16, 22, 24]),
    warmup_length=500 / train.max_iter,
    warmup_method="linear",
    warmup_factor=0.001,
)
