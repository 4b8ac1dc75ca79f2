"""CrowdHuman for 12 epochs ("1x") at batch 16: data, optimizer and schedule.

From PGD's release: RGB images, short side 800, long side at most 1400 pixels, learning rate 0.01.
Warm-up, drops and clipping are from its COCO recipe. We assume that they hold here, too.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from d2kd.evaluation.crowdhuman import CrowdHumanEvaluator

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
optimizer = model_zoo.get_config("common/optim.py").SGD
train = model_zoo.get_config("common/train.py").train

dataloader.train.dataset.names = "crowdhuman_train"
dataloader.test.dataset.names = "crowdhuman_val"
dataloader.evaluator = L(CrowdHumanEvaluator)(dataset_name="${..test.dataset.names}")
dataloader.train.mapper.update(use_instance_mask=False, image_format="RGB")
dataloader.train.mapper.augmentations[0].update(short_edge_length=[800], max_size=1400)
dataloader.test.mapper.augmentations[0].max_size = 1400

optimizer.lr = 0.01
optimizer.params.weight_decay_norm = None  # normalization decays as all else

# 12 epochs of 938 steps; an epoch is 15,000 images in batches of 16.
train.max_iter = 12 * 938
train.eval_period = train.checkpointer.period = 938
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.update(clip_grad_norm=35.0, seed=1)
train.amp.dtype = "float16"

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[8, 11, 12]),
    warmup_length=500 / train.max_iter,
    warmup_method="linear",
    warmup_factor=0.001,
)
