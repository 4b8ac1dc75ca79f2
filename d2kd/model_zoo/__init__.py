"""Configs and trained students that come with d2kd, by name.

    from d2kd import model_zoo

    cfg = model_zoo.get_config("gfl/gfl_R_50_FPN_1x_bs16_fgd.py")
    detector = model_zoo.get_detector(model_zoo.list_detectors()[0])

    ../recipes.py   configs, as Detectron2's `model_zoo` gives its own
    students.py     weights of small students: the table, loading and saving
    detector.py     a detector that takes pictures

In a checkout, `configs` in this folder is a link to the configs at the top. In an installed package
it is a folder with a copy of them.
"""

from ..recipes import get_config, get_config_file, list_configs
from .detector import Detector
from .students import Entry, find_entry, get_detector, list_detectors, save_student

__all__ = [
    "Detector",
    "Entry",
    "find_entry",
    "get_config",
    "get_config_file",
    "get_detector",
    "list_configs",
    "list_detectors",
    "save_student",
]
