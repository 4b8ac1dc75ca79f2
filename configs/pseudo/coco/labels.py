"""RetinaNet R101 of Detectron2's model zoo labels COCO's training images, as if they had no labels.

This teacher was trained on all of these labels. The student thus learns more than its share of the
labels says, and the report finds better labels than new images would get. For a student without
this help, train a teacher on the share: set `model` and `weights` to share.py and its checkpoint,
use a higher threshold (STAC's is 0.9, Unbiased Teacher's 0.7), and set `labels.output` to another
folder.

d2kd label --config-file configs/pseudo/coco/labels.py --num-gpus 8
"""

from detectron2.config import LazyCall as L

from d2kd.pseudo import FixedThresholds, Fusion, LabelTeacher

labels = dict(
    images=dict(dataset="coco_2017_train"),
    classes="coco_2017_train",
    teachers=dict(
        retinanet=L(LabelTeacher)(
            model="COCO-Detection/retinanet_R_101_FPN_3x.yaml",
            weights="zoo",
            classes="coco_2017_train",
        )
    ),
    thresholds=L(FixedThresholds)(high=0.5, low=0.3),
    fusion=L(Fusion)(),
    output="output/pseudo/coco/labels",
    truth="coco_2017_train",  # for the report only
)
