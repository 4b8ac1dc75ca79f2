"""COCO for 24 epochs ("2x") at batch 16: data, optimizer and schedule. Needs Detectron2 only.

- From FGD's release: 24 epochs, learning rate / 10 after 16 and 22, gradient norm clipped at 35.
  (Detectron2's own 2x is 180,000 steps with drops at 120,000 and 160,000, without clipping.)
- From Detectron2, and perhaps not as in the release: all else. Short sides of 640 to 800 pixels,
  BGR images for Caffe's ImageNet weights, warm-up of 1,000 steps, no weight decay on normalization.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
optimizer = model_zoo.get_config("common/optim.py").SGD
train = model_zoo.get_config("common/train.py").train

dataloader.train.mapper.use_instance_mask = False

optimizer.lr = 0.02  # of R-CNNs; recipes of one-stage detectors set 0.01

# 24 epochs of 7,330 steps; an epoch is 117,266 images with boxes in batches of 16.
train.max_iter = 24 * 7330
train.eval_period = train.checkpointer.period = 7330
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.clip_grad_norm = 35.0
train.seed = 1
train.amp.dtype = "float16"

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[16, 22, 24]),
    warmup_length=1000 / train.max_iter,
    warmup_method="linear",
    warmup_factor=0.001,
)
