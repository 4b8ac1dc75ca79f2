"""Pseudo labels: teachers label images, and a student trains on the labels.

The steps, in the order in which `d2kd.pseudo.pipeline` runs them, and the mean teacher:

    data/manifest.py   list the images
    job.py             the `labels` of a config: images, teachers and how to label; checked
    teachers.py        a frozen detector that labels, with its class names
    label.py           run the teachers over the images, in units that can be interrupted
    cache.py           store the raw predictions
    categories.py      map each teacher's classes to the student's
    predictions.py     read the raw predictions of all teachers
    thresholds.py      choose the scores from which a box is a label
    fuse.py            fuse the boxes of several teachers
    coco.py            write the labels, and load them for training
    provenance.py      record what the labels were made from, and verify it
    online.py          a mean teacher, which labels while the student trains
    collapse.py        notice when it leads its student astray
    quality/           report how good the labels are

docs/pseudo.md is the guide. Configs need only the names that are exported here.
"""

from __future__ import annotations

from .coco import load_pseudo_labels
from .fuse import Fusion
from .online import MeanTeacher
from .teachers import LabelTeacher
from .thresholds import (
    DistributionThresholds,
    FBetaThresholds,
    FixedThresholds,
    MixtureThresholds,
)

__all__ = [
    "DistributionThresholds",
    "FBetaThresholds",
    "FixedThresholds",
    "Fusion",
    "LabelTeacher",
    "MeanTeacher",
    "MixtureThresholds",
    "load_pseudo_labels",
]
