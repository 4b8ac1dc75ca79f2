"""Find what is wrong with a set of data before anything is trained, evaluated or labeled with it.

    sets.py       audit one set: a COCO file, a registered dataset, or dicts
    contents.py   read a set into arrays, and count what is wrong with its ids and entries
    entries.py    what one entry of a COCO file says
    boxes.py      boxes that are no boxes
    images.py     headers of image files, in parallel
    classes.py    compare how sets number their classes
    kinds.py      all kinds of defects, and what is done about each
    mend.py       a copy of a COCO file without the defects that can be repaired
    cache.py      what was read, for the next run

`d2kd.audit` audits all sets of a config; docs/reliability.md explains the rules.
"""

from .classes import check_numbers, compare_classes
from .kinds import NOTE, REFUSED, WARNING, Defect, describe
from .mend import mend_coco, use_copy
from .sets import AuditedSet, CocoSource, audit_coco, audit_records, audit_registered, coco_source

__all__ = [
    "NOTE",
    "REFUSED",
    "WARNING",
    "AuditedSet",
    "CocoSource",
    "Defect",
    "audit_coco",
    "audit_records",
    "audit_registered",
    "check_numbers",
    "coco_source",
    "compare_classes",
    "describe",
    "mend_coco",
    "use_copy",
]
