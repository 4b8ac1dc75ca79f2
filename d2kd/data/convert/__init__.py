"""Convert labels to COCO's format, in the layout that `d2kd.data.folders` registers.

    voc.py, yolo.py, deep_pcb.py    one format each: which images there are, and their boxes
    splits.py                       which image belongs to which split
    coco.py                         boxes checked against their images; ids; COCO's format
    folder.py                       write the folder of a dataset, complete or not at all
    text.py                         read text files; collect what is wrong in them

`d2kd data` is the command. Nothing here imports PyTorch.
"""

from .coco import Dataset
from .deep_pcb import convert_deep_pcb
from .folder import write_dataset
from .splits import Split
from .voc import convert_voc
from .yolo import convert_yolo

__all__ = [
    "Dataset",
    "Split",
    "convert_deep_pcb",
    "convert_voc",
    "convert_yolo",
    "write_dataset",
]
