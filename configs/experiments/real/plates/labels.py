"""The teacher labels the images of the dash-cam.

d2kd label --config-file configs/experiments/real/plates/labels.py
"""

from detectron2.config import LazyCall as L

from d2kd.pseudo import FixedThresholds, Fusion, LabelTeacher

from .teacher import model as teacher

teacher.backbone.bottom_up.pretrained = False  # the checkpoint has all weights

labels = dict(
    images=dict(dataset="plates_ro_train"),
    classes="plates_ro_train",
    teachers=dict(
        large=L(LabelTeacher)(
            model=teacher,
            weights="output/real/plates/teacher/model_final.pth",
            classes="plates_us",
            input_format="RGB",
            min_size_test=640,
            max_size_test=640,
        )
    ),
    thresholds=L(FixedThresholds)(high=0.5, low=0.3),
    fusion=L(Fusion)(),
    output="output/real/plates/labels",
    truth="plates_ro_train",  # for the report only
)
