"""The teacher labels all training images, as if they had no labels.

d2kd label --config-file configs/experiments/real/neu_det/fifth_labels.py

The teacher is the one of fifth_teacher.py. For the teacher that has seen all labels:
labels.teachers.large.weights=output/real/neu_det/teacher/model_final.pth
labels.output=output/real/neu_det/labels_all
"""

from detectron2.config import LazyCall as L

from d2kd.pseudo import FixedThresholds, Fusion, LabelTeacher

from .teacher import model as teacher

teacher.backbone.bottom_up.pretrained = False  # the checkpoint has all weights

labels = dict(
    images=dict(dataset="neu_det_train"),
    classes="neu_det_train",
    teachers=dict(
        large=L(LabelTeacher)(
            model=teacher,
            weights="output/real/neu_det/fifth_teacher/model_final.pth",
            classes="neu_det_train",
            input_format="RGB",
            min_size_test=160,
        )
    ),
    thresholds=L(FixedThresholds)(high=0.5, low=0.3),
    fusion=L(Fusion)(),
    output="output/real/neu_det/labels_fifth",
    truth="neu_det_train",
)
