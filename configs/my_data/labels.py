"""The teacher, which teacher.py trains first, labels your images without labels.

    d2kd label --config-file my_data/labels.py

The environment variable D2KD_UNLABELED names their folder.
"""

import os

from detectron2.config import LazyCall as L

from d2kd.pseudo import FixedThresholds, Fusion, LabelTeacher

from .common import DATA, OUTPUT

UNLABELED = os.environ.get("D2KD_UNLABELED") or "datasets/unlabeled"
if not os.path.isdir(UNLABELED):
    raise FileNotFoundError(
        f"expected a folder with images at {UNLABELED!r}, found none. Set D2KD_UNLABELED to your "
        f"folder: export D2KD_UNLABELED=path/to/images"
    )

labels = dict(
    images=dict(folder=UNLABELED),
    classes=list(DATA.classes),
    teachers=dict(
        teacher=L(LabelTeacher)(
            model=os.path.join(os.path.dirname(__file__), "teacher.py"),
            weights=f"{OUTPUT}/teacher/model_final.pth",
            classes=list(DATA.classes),
        ),
    ),
    thresholds=L(FixedThresholds)(high=0.5, low=0.3),
    fusion=L(Fusion)(),
    output=f"{OUTPUT}/labels",
)
