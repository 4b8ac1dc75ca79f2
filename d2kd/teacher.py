"""The frozen detector that a student learns from."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from .knowledge import Knowledge
from .loading import FrozenDetector, fuse_norms
from .readers import Reader, get_reader
from .values import check_flag

__all__ = ["Teacher", "pad_to"]

logger = logging.getLogger(__name__)


class Teacher(FrozenDetector):
    """A `FrozenDetector` that shows its features and predictions.

    Args:
        model, weights, input_format, dtype: see `FrozenDetector`.
        fast: fuse the batch norms of the bottom-up network into its convolutions (`fuse_norms`)
            and run it channels last. Its features then differ by rounding, by about 5e-6 of the
            largest value; see docs/performance.md.
        compile: run the backbone through `torch.compile` with its weights as constants. The first
            step of a run then takes a minute or more, and so does the first step with images of
            another size; later sizes share one program. Its features differ by rounding.

    Raises:
        FileNotFoundError: there is no file and no zoo entry of that name.
        TypeError: no reader knows this kind of detector.
        ValueError: the weights do not fit, or an argument has an impossible value.
    """

    def __init__(
        self,
        model: nn.Module | DictConfig | str,
        weights: str | None,
        *,
        input_format: str | None = None,
        dtype: str | None = None,
        fast: bool = False,
        compile: bool = False,
    ):
        check_flag("Teacher.fast", fast)
        check_flag("Teacher.compile", compile)
        if compile and not hasattr(torch, "compile"):
            raise ValueError(
                f"Teacher.compile: expected PyTorch 2.0 or later, found {torch.__version__}. "
                f"Leave it out."
            )
        super().__init__(model, weights, input_format=input_format, dtype=dtype)
        self.reader: Reader = get_reader(self.model)
        self.memory_format = torch.channels_last if fast else torch.contiguous_format
        if fast:
            # The norms of neck and head stay, because a student may inherit them.
            backbone = self.reader.backbone
            count = fuse_norms(getattr(backbone, "bottom_up", backbone))
            logger.info("Teacher: %d batch norms fused, channels last", count)
            self.model.to(memory_format=self.memory_format)
        if compile:
            # Only its forward function: the hooks that read its maps stay outside.
            backbone = self.reader.backbone
            backbone.forward = torch.compile(backbone.forward, options={"freezing": True})

    def __repr__(self) -> str:
        return f"Teacher({self.reader.name}, frozen)"

    @property
    def backbone(self) -> nn.Module:
        return self.reader.backbone

    @torch.no_grad()
    def __call__(
        self,
        batched_inputs: Sequence[dict],
        *,
        input_format: str,
        padded_size: tuple[int, int],
        needs: Collection[str] = ("features",),
    ) -> Knowledge:
        """Run the forward pass as far as `needs` asks, without label assignment, losses or NMS.

        Args:
            batched_inputs: the student's inputs; "image" is (3, H, W), raw pixels in [0, 255].
            input_format: channel order of those pixels.
            padded_size: height and width to which the student padded the batch. The teacher pads
                to at least this size, so that its maps cover all of the student's.

        Returns:
            Knowledge without gradients. Cell (0, 0) of every map lies at the top left of the image,
            as in the student. If the teacher pads more than the student, the extra cells are cut
            off.
        """
        images = self.reader.images(self._to_own_format(batched_inputs, input_format))
        pixels = pad_to(images, padded_size, self.divisibility)
        pixels = pixels.contiguous(memory_format=self.memory_format)
        with self.autocast():
            return self.reader.run(pixels, needs, padded_size)

    @torch.no_grad()
    def detect(self, batched_inputs: Sequence[dict], *, input_format: str) -> list[dict]:
        """The teacher's detections in Detectron2's output format, for evaluating the teacher."""
        return self.model(self._to_own_format(batched_inputs, input_format))

    def _to_own_format(self, batched_inputs: Sequence[dict], input_format: str) -> list[dict]:
        """The inputs in the teacher's channel order, without ground truth."""
        flip = input_format != self.input_format
        return [
            {
                **{k: v for k, v in x.items() if k != "instances"},
                **({"image": x["image"].flip(0)} if flip else {}),
            }
            for x in batched_inputs
        ]


def pad_to(images: Tensor, size: tuple[int, int], divisibility: int) -> Tensor:
    """Pad to at least `size`, rounded up to a multiple of `divisibility`, at the bottom right.

    The padding is 0, which is the mean of normalized images, as in Detectron2.

    Args:
        images: (N, 3, H, W), normalized.
        size: height and width in pixels.
    """
    extra = [
        -(-max(side, least) // divisibility) * divisibility - side
        for side, least in zip(images.shape[-2:], size, strict=True)
    ]
    return F.pad(images, (0, extra[1], 0, extra[0])) if any(extra) else images
