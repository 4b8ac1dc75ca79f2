"""The frozen detector that a student learns from."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .build import build_detector
from .checkpoint import load_strictly
from .fold import fold_norms
from .knowledge import Knowledge
from .readers import Reader, get_reader

__all__ = ["Teacher"]

logger = logging.getLogger(__name__)


class Teacher:
    """Builds, loads and runs a frozen detector.

    It is not an `nn.Module`: whatever holds it never sees it in `state_dict()`, `parameters()`,
    DDP buckets or `.train()`, and Detectron2's evaluation cannot switch it to training mode.

    Args:
        model: a LazyConfig node of a detector (or the detector itself), the path of a LazyConfig
            or yacs file, or a name in Detectron2's model zoo; see `build_detector`.
        weights: path or URL of its checkpoint, loaded strictly; "zoo" for the weights that the
            model zoo keeps for `model`; None for a detector whose weights are there already.
        input_format: channel order that the teacher was trained with, "BGR" or "RGB". Default:
            that of the images that its config loads; else the detector's own `input_format`, where
            it has one; else "BGR", as in Detectron2.
        dtype: autocast precision of its forward pass, "bfloat16" or "float16"; None for fp32.
        fast: fold the batch norms of its bottom-up network into the convolutions (`fold_norms`) and
            run it channels last. Its features move by rounding, about 5e-6 of the largest; see
            docs/performance.md.

    Raises:
        FileNotFoundError: no file or zoo entry of that name.
        ValueError: weights do not fit, or a field has an impossible value.
    """

    def __init__(
        self,
        model: nn.Module | str,
        weights: str | None,
        *,
        input_format: str | None = None,
        dtype: str | None = None,
        fast: bool = False,
    ):
        if dtype not in (None, "bfloat16", "float16"):
            raise ValueError(f"Teacher.dtype: expected bfloat16, float16 or None, found {dtype!r}")
        # The student's initial weights and batches must not depend on how its teacher was built.
        with torch.random.fork_rng(devices=[]):
            self.model, loaded_format = build_detector(model)
        self.reader: Reader = get_reader(self.model)
        self.input_format = check_format(input_format or loaded_format, self.model)
        self.dtype = getattr(torch, dtype) if dtype else None
        if weights == "zoo":
            weights = _zoo_weights(model)
        if weights is None:
            logger.warning("Teacher %s: weights=None, it teaches as it is.", self.reader.name)
        else:
            counts = load_strictly(self.model, weights)
            logger.info("Teacher %s: %s from %s", self.reader.name, counts, weights)
        self.model.eval().requires_grad_(False)
        self.layout = torch.channels_last if fast else torch.contiguous_format
        if fast:
            # Those of neck and head stay: a student may inherit them.
            backbone = self.reader.backbone
            count = fold_norms(getattr(backbone, "bottom_up", backbone))
            logger.info("Teacher: %d batch norms folded, channels last", count)
            self.model.to(memory_format=self.layout)

    def __repr__(self) -> str:
        return f"Teacher({self.reader.name}, frozen)"

    def to(self, device: torch.device | str) -> Teacher:
        """Follow the student. Costs nothing where it is there already."""
        if next(self.model.parameters()).device != torch.device(device):
            self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        batched_inputs: Sequence[dict],
        *,
        input_format: str,
        padded_size: tuple[int, int],
        needs: Collection[str] = ("features",),
    ) -> Knowledge:
        """Forward pass as far as `needs` asks: never label assignment, losses or NMS.

        Args:
            batched_inputs: the student's inputs; "image" is (3, H, W), raw pixels in [0, 255].
            input_format: channel order of those pixels.
            padded_size: height and width to which the student padded the batch. The teacher pads
                to at least that much, so that its maps cover all of the student's.

        Returns:
            Knowledge, without gradient, over the student's frame: cell (0, 0) of every map lies
            at the image's top left, as the student's does, and the cells that a teacher adds by
            padding more are cut off.
        """
        images = self.model.preprocess_image(self._own_format(batched_inputs, input_format))
        pixels = pad_to(images.tensor, padded_size, self._divisibility())
        pixels = pixels.contiguous(memory_format=self.layout)
        with torch.autocast(pixels.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.reader.run(pixels, needs, padded_size)

    @torch.no_grad()
    def detect(self, batched_inputs: Sequence[dict], *, input_format: str) -> list[dict]:
        """The teacher's own detections, in Detectron2's output format, for evaluating it."""
        return self.model(self._own_format(batched_inputs, input_format))

    def _own_format(self, batched_inputs: Sequence[dict], input_format: str) -> list[dict]:
        if input_format == self.input_format:
            return [{k: v for k, v in x.items() if k != "instances"} for x in batched_inputs]
        return [
            {**{k: v for k, v in x.items() if k != "instances"}, "image": x["image"].flip(0)}
            for x in batched_inputs
        ]

    def _divisibility(self) -> int:
        backbone = self.reader.backbone
        constraints = getattr(backbone, "padding_constraints", {})  # Detectron2 0.6 has none
        return max(constraints.get("size_divisibility", backbone.size_divisibility), 1)


def pad_to(images: Tensor, size: tuple[int, int], divisibility: int) -> Tensor:
    """Zero-pad at the bottom and right to at least `size`, in multiples of `divisibility` pixels.

    Args:
        images: (N, C, H, W).
        size: the least height and width, in pixels.
    """
    extra = [
        -(-max(have, least) // divisibility) * divisibility - have
        for have, least in zip(images.shape[-2:], size, strict=True)
    ]
    return F.pad(images, (0, extra[1], 0, extra[0])) if any(extra) else images


def check_format(given: str | None, model: nn.Module) -> str:
    """Channel order of a detector's input: as given, or its own, or Detectron2's default."""
    found = given or getattr(model, "input_format", None) or "BGR"
    if found not in ("BGR", "RGB"):
        raise ValueError(
            f"input_format of {type(model).__name__}: expected 'BGR' or 'RGB', found {found!r}"
        )
    return found


def _zoo_weights(source: nn.Module | str) -> str:
    from detectron2 import model_zoo

    try:
        return model_zoo.get_checkpoint_url(source)
    except (RuntimeError, AttributeError):
        raise FileNotFoundError(
            f"Teacher.weights='zoo': expected Teacher.model to be a name with weights in "
            f"Detectron2's model zoo, found "
            f"{source if isinstance(source, str) else type(source).__name__!r}. "
            f"Give the path of a checkpoint."
        ) from None
