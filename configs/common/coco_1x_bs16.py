"""COCO for 12 epochs ("1x") at batch 16: data, optimizer and schedule. Needs Detectron2 only.

It is for GFL alone and with FGD, UET, PKD, CWD and LD. From FGD's release: learning rate 0.01, / 10
after 8 and 11 epochs, gradient norm clipped at 35. GFL's own recipe does not clip, nor does LD's.
All else is as in PGD's release: RGB images for torchvision's ImageNet weights, short side 800,
warm-up of 500 steps, weight decay on everything.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
optimizer = model_zoo.get_config("common/optim.py").SGD
train = model_zoo.get_config("common/train.py").train

dataloader.train.mapper.use_instance_mask = False
dataloader.train.total_batch_size = 16
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations[0].short_edge_length = [800]

optimizer.lr = 0.01
optimizer.params.weight_decay_norm = None  # normalization decays as all else

# 12 epochs of 7,330 steps; an epoch is 117,266 images with boxes in batches of 16.
train.max_iter = 12 * 7330
train.eval_period = train.checkpointer.period = 7330
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
