"""Check the values of a config before anything is built.

    train.py         the fields of `train`: names, ranges, periods, the device
    names.py         names of fields
    heads.py         numbers of classes and anchors of a detector's parts
    mappers.py       fields of the mappers that depend on each other
    files.py         configs and checkpoints of student and teacher that are not there
    mean_teacher.py  what `train.mean_teacher` needs from the other sections
    kinds.py         all other fields: flags, numbers and texts, by the annotations of their targets
    schedule.py      the learning rate's multiplier and its milestones

`d2kd.config` calls these checks. Each error names the field, what was expected and what was found.
"""

from .files import check_models, check_weights
from .heads import check_heads
from .kinds import check_kinds
from .mappers import check_mappers
from .mean_teacher import check_mean_teacher
from .names import check_complete, check_names, check_nodes, field_names, nearest, nodes
from .schedule import check_schedule
from .sizes import check_sizes
from .train import check_train

__all__ = [
    "check_complete",
    "check_heads",
    "check_kinds",
    "check_mappers",
    "check_mean_teacher",
    "check_models",
    "check_names",
    "check_nodes",
    "check_schedule",
    "check_sizes",
    "check_train",
    "check_weights",
    "field_names",
    "nearest",
    "nodes",
]
