"""COCO for 12 epochs ("1x") at batch 32: data, optimizer and schedule. Needs Detectron2 only.

All of it is from PGD's release: SGD with learning rate 0.02, / 10 after 8 and 11 epochs, warm-up of
500 steps from 0.001 of it, gradient norm clipped at 35, weight decay on everything; short side 800,
long side at most 1333 pixels, flips; RGB images for torchvision's ImageNet weights. The release
trains the plain ATSS, FCOS and AutoAssign, and distills AutoAssign, in fp16. Here fp32 is the
default for all; `train.amp.enabled=True` (and `model.teacher.dtype=float16`) is fp16.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
optimizer = model_zoo.get_config("common/optim.py").SGD
train = model_zoo.get_config("common/train.py").train

dataloader.train.mapper.use_instance_mask = False
dataloader.train.total_batch_size = 32
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations[0].short_edge_length = [800]

optimizer.lr = 0.02
optimizer.params.weight_decay_norm = None  # normalization decays as all else

# 12 epochs of 3,665 steps; an epoch is 117,266 images with boxes in batches of 32.
train.max_iter = 12 * 3665
train.eval_period = train.checkpointer.period = 3665
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.clip_grad_norm = 35.0
train.seed = 1
train.amp.dtype = "float16"

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[8, 11, 12]),
    warmup_length=500 / train.max_iter,
    warmup_method="linear",
    warmup_factor=0.001,
)
