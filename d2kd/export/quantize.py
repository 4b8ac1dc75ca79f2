"""An ONNX file with convolutions in int8, and what it costs in AP."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ..data import register_all
from ..evaluation import evaluate
from .onnx_detector import OnnxDetector
from .packages import require

__all__ = ["check_test_set", "measure_ap", "write_int8"]

# The operations that cost time. Boxes need more than 8 bits, so decoding stays in fp32.
OPERATIONS = ["Conv", "Gemm", "MatMul"]


def write_int8(path: Path, images: Iterable[Tensor], output: Path) -> None:
    """Quantize weights and inputs of the convolutions and linear layers to int8.

    Weights have a scale for each output channel. Inputs have one scale, from the smallest and the
    largest value on the calibration images.

    Args:
        path: the fp32 file.
        images: calibration inputs of the file, uint8 (3, H, W) or (N, 3, H, W), of any sizes.
        output: the new file.
    """
    quantization: Any = require("onnxruntime.quantization")
    shapes = require("onnxruntime.quantization.shape_inference")
    onnx = require("onnx")

    class Reader(quantization.CalibrationDataReader):
        inputs = ({"image": image.numpy()} for image in images)

        def get_next(self) -> dict | None:
            return next(self.inputs, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = str(Path(folder, "prepared.onnx"))
        # The symbolic inference of shapes fails on NMS.
        shapes.quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            str(output),
            Reader(),
            op_types_to_quantize=OPERATIONS,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
        )
    given, written = onnx.load(str(path)), onnx.load(str(output))
    # The preparation infers shapes from the image that was traced. onnxruntime believes them, and
    # fails where an image has no candidates on a level. It infers its own.
    del written.graph.value_info[:]
    properties = {x.key: x.value for x in given.metadata_props}
    onnx.helper.set_model_props(written, properties)
    onnx.save(written, str(output))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the advice that onnxruntime logs, which the code above follows."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def check_test_set(cfg: DictConfig) -> None:
    """Raise a ValueError if the AP cannot be measured by the config's test set and evaluator."""
    register_all()
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    for name in [names] if isinstance(names, str) else names or [None]:
        if name is None:
            raise ValueError(
                "--int8: expected a config with dataloader.test.dataset.names, because the AP of "
                "the int8 file is measured on this set, found none. Leave out --int8."
            )
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"--int8: expected the config's test set to be registered, because the AP of the "
                f"int8 file is measured on it, found no {name!r}. Prepare it "
                f"(datasets/README.md), or leave out --int8."
            )
    if "evaluator" not in cfg.dataloader:
        raise ValueError("--int8: expected dataloader.evaluator in the config, found none.")


def measure_ap(cfg: DictConfig, path: Path) -> float:
    """Box AP in percent of an ONNX file on the config's test set, by the config's evaluator."""
    return float(evaluate(cfg, OnnxDetector(path))["bbox"]["AP"])
