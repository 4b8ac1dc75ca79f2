"""Audit all data of a config before the first step: sets, classes, evaluator.

`d2kd.data.audit` says what is wrong with one set. Here, the sets of a config are found, compared
with each other and with the models, and the evaluation is rehearsed.

    run.py         the sets of a config, and their classes
    evaluator.py   the evaluator's data and classes, and its rehearsal
    models.py      how many classes student and teacher have
    report.py      table and messages; repaired copies of COCO files
"""

from .models import num_classes
from .report import Audit
from .run import audit_config, audit_in_all_processes, audit_labels, audit_sets

__all__ = [
    "Audit",
    "audit_config",
    "audit_in_all_processes",
    "audit_labels",
    "audit_sets",
    "num_classes",
]
