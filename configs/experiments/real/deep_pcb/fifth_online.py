"""A mean teacher labels the other images while the student trains on a fifth of the labels."""

from detectron2.config import LazyCall as L

from d2kd.pseudo import DistributionThresholds, Fusion, MeanTeacher

from ..common import add_unlabeled, with_two_views
from .fifth import dataloader
from .fifth_pseudo import lr_multiplier, model, optimizer, train

dataloader.train.dataset = add_unlabeled(dataloader.train.dataset, "deep_pcb_train")
dataloader.train.mapper = with_two_views(dataloader.train.mapper)
# Blurring and erasing would remove small defects, and make new ones.
dataloader.train.mapper.strong = dataloader.train.mapper.strong[:2]

train.ema = dict(decay=0.999)
train.mean_teacher = L(MeanTeacher)(
    burn_in=1500, thresholds=L(DistributionThresholds)(share=0.6), fusion=L(Fusion)()
)
train.output_dir = "output/real/deep_pcb/fifth_online"
