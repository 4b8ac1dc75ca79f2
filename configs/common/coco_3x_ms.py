"""COCO for 36 epochs ("3x") at batch 32 on many image sizes ("ms"), for R101 teachers.

From PGD's release: learning rate 0.02, / 10 after 24 and 33 epochs, no clipping, warm-up of 500
steps, weight decay on everything; RGB images, short side 480 to 960, long side at most 1333 pixels.
That all sizes in between are equally likely is our reading of it.
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
dataloader.train.total_batch_size = 32
dataloader.train.mapper.image_format = "RGB"
_resize = dataloader.train.mapper.augmentations[0]
_resize.update(short_edge_length=[480, 960], sample_style="range")

optimizer.lr = 0.02
optimizer.params.weight_decay_norm = None  # normalization decays as all else

# 36 epochs of 3,665 steps; an epoch is 117,266 images with boxes in batches of 32.
train.max_iter = 36 * 3665
train.eval_period = train.checkpointer.period = 3665
train.init_checkpoint = "R-101.pkl"
train.update(clip_grad_norm=0.0, seed=1)
train.amp.dtype = "float16"

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[24, 33, 36]),
    warmup_length=500 / train.max_iter,
    warmup_method="linear",
    warmup_factor=0.001,
)
