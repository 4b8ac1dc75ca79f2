"""A mean teacher labels the night images while the student trains. Compare with night_adapted.py.

Half of the images are clear, with their true labels. The other half show night, without labels.
Start from the same student as night_adapted.py, which was trained on clear images:

    train.init_checkpoint=output/demo/half/model_final.pth
"""

from detectron2.config import LazyCall as L

from d2kd.data import TwoViewMapper, load_unlabeled
from d2kd.pseudo import FixedThresholds, Fusion, MeanTeacher

from .night_adapted import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.target = L(load_unlabeled)(name="demo_night_train")
# The teacher sees the images as they are. Students train on strongly augmented images.
dataloader.train.mapper = L(TwoViewMapper)(
    is_train=True,
    augmentations=[],
    strong=dataloader.train.mapper.augmentations,
    image_format="RGB",
)
train.ema = dict(decay=0.99)
train.mean_teacher = L(MeanTeacher)(
    burn_in=50, thresholds=L(FixedThresholds)(high=0.5, low=0.3), fusion=L(Fusion)()
)
train.output_dir = "output/pseudo/night_online"
