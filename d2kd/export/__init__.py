"""The student alone for other programs: Detectron2, safetensors, TorchScript, ONNX.

yacs.py             one of Detectron2's older YAML configs (yacs_keys.py reads its keys)
structure.py        what differs between two modules besides their weights
source.py           the detector, by a name in the zoo or by config and checkpoint
tracing.py          a function of one image, as TorchScript or ONNX
onnx_detector.py    an ONNX file in Detectron2's interface
compare.py          are its detections those of the Detectron2 model?
quantize.py         int8, and its AP
card.py             the model card
run.py              all of it, in one folder
"""

from .onnx_detector import OnnxDetector
from .run import COMPARED, FORMATS, export
from .source import Source, open_source

__all__ = ["COMPARED", "FORMATS", "OnnxDetector", "Source", "export", "open_source"]
