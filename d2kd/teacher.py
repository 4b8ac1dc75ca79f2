"""The frozen detector that a student learns from."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from .frozen import FrozenDetector, fuse_norms
from .knowledge import Knowledge
from .readers import Reader, get_reader
from .resolution import (
    Size,
    check_image_size,
    fit_into_square,
    resample,
    resize_image,
    shortest_edge_size,
)
from .values import check_flag

__all__ = ["Teacher", "pad_to"]

logger = logging.getLogger(__name__)


class Teacher(FrozenDetector):
    """A `FrozenDetector` that shows its features and predictions.

    Args:
        model, weights, input_format, dtype, setup: see `FrozenDetector`.
        image_size: the teacher sees images of this size and not of the student's: the shorter side
            in pixels, or a pair, the shorter side and the limit of the longer side, such as
            (800, 1333). `d2kd.data.TwoSizeMapper` gives both networks the same view at their own
            sizes, and this size is then used in evaluation only. Without that mapper, the student's
            pixels are interpolated to this size. The feature maps are resampled to the student's
            frame. Methods that need predictions of the teacher are refused, because predictions of
            another grid belong to other anchors. Default: the student's size.
        fast: fuse the batch norms of the bottom-up network into its convolutions (`fuse_norms`)
            and run it channels last. Its features then differ by rounding, by about 5e-6 of the
            largest value; see docs/performance.md.
        compile: run the backbone through `torch.compile` with its weights as constants. The first
            step of a run then takes a minute or more, and so does the first step with images of
            another size; later sizes share one program. Its features differ by rounding.

    Attributes:
        detects: whether it is a detector, which can be evaluated.

    Raises:
        FileNotFoundError: there is no file and no zoo entry of that name.
        TypeError: no reader knows this kind of detector.
        ValueError: the weights do not fit, an argument has an impossible value, or the detector
            finds rotated boxes.
    """

    detects = True

    def __init__(
        self,
        model: nn.Module | DictConfig | str,
        weights: str | None,
        *,
        input_format: str | None = None,
        dtype: str | None = None,
        setup: Callable[[Any], Any] | str | None = None,
        image_size: int | Sequence[int] | None = None,
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
        self.image_size = check_image_size("Teacher.image_size", image_size)
        self._interpolates = False  # whether the log says so already
        super().__init__(model, weights, input_format=input_format, dtype=dtype, setup=setup)
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
                With `image_size`, "teacher_image" is the same view at the teacher's own size.
            input_format: channel order of those pixels.
            padded_size: height and width to which the student padded the batch. The teacher pads
                to at least this size, so that its maps cover all of the student's.

        Returns:
            Knowledge without gradients. Cell (0, 0) of every map lies at the top left of the image,
            as in the student. If the teacher pads more than the student, the extra cells are cut
            off. If it sees images of another size, its maps are resampled to cells of its own
            strides in pixels of the student.

        Raises:
            ValueError: `needs` has more than features, and the teacher sees images of another size.
        """
        inputs = self._own_inputs(batched_inputs, input_format)
        sizes, own_sizes = (
            [(x["image"].shape[-2], x["image"].shape[-1]) for x in given]
            for given in (batched_inputs, inputs)
        )
        # Images that fit into the teacher's square may be in a batch whose padding does not.
        padding_fits = not self.square_size or max(padded_size) <= self.square_size
        same_grid = self.image_size is None and sizes == own_sizes and padding_fits
        if not same_grid:
            self.check_needs("methods", needs)
        scales = [
            (own[0] / size[0], own[1] / size[1]) for own, size in zip(own_sizes, sizes, strict=True)
        ]
        pixels = self.reader.images(inputs)
        if not self.square_size:  # with a square, they are padded to it already
            least = padded_size if same_grid else _scaled(padded_size, scales)
            pixels = pad_to(pixels, least, self.divisibility)
        pixels = pixels.contiguous(memory_format=self.memory_format)
        with self.autocast():
            knowledge = self.reader.run(pixels, needs, padded_size if same_grid else None)
        return knowledge if same_grid else self._in_frame(knowledge, scales, padded_size)

    def check_needs(self, caller: str, needs: Collection[str]) -> None:
        """Refuse methods that need more than features of a teacher that sees another size.

        Args:
            caller: who needs it, for the message.

        Raises:
            ValueError: `needs` has more than features.
        """
        more = sorted(set(needs) - {"features"})
        if more:
            why = "Teacher.image_size" if self.image_size else "the square of its backbone"
            raise ValueError(
                f"{caller}: expected methods that need only features, because the teacher "
                f"({self.reader.name}) sees images of another size than the student ({why}), so "
                f"that its predictions belong to other anchors, found methods that need "
                f"{', '.join(more)}. Use feature methods such as FGD, or give both the same size."
            )

    @torch.no_grad()
    def detect(self, batched_inputs: Sequence[dict], *, input_format: str) -> list[dict]:
        """The teacher's detections in Detectron2's output format, for evaluating the teacher.

        With `image_size`, it detects in images of that size. Boxes are in pixels of the "height"
        and "width" of the inputs, as always in Detectron2.
        """
        return self.model(self._own_inputs(batched_inputs, input_format))

    def _own_inputs(self, batched_inputs: Sequence[dict], input_format: str) -> list[dict]:
        """The inputs in the teacher's channel order and size, without ground truth."""
        if self.image_size is None and any("teacher_image" in x for x in batched_inputs):
            raise ValueError(
                f"teacher {self.reader.name}: expected a Teacher with image_size, because the "
                f"mapper gives the teacher pixels of its own size ('teacher_image'), found a "
                f"{type(self).__name__} without one. Use another mapper, such as PartialMapper; or "
                f"set Teacher.image_size to the size that this detector was trained with."
            )
        flip = input_format != self.input_format
        own = []
        for x in batched_inputs:
            image = self._own_size(x)
            height, width = x["image"].shape[-2:]
            own.append(
                {
                    "height": height,  # boxes come back in this frame
                    "width": width,
                    **{k: v for k, v in x.items() if k not in ("instances", "teacher_image")},
                    "image": image.flip(0) if flip else image,
                }
            )
        return own

    def _own_size(self, x: dict) -> Tensor:
        """The pixels of an input (3, H, W) at the teacher's size."""
        image: Tensor = x["image"]
        if self.image_size is not None:
            if "teacher_image" in x:
                image = x["teacher_image"]
            else:
                self._say_that_it_interpolates()
                size = image.shape[-2], image.shape[-1]
                image = resize_image(image, shortest_edge_size(size, self.image_size))
        return fit_into_square(image, self.square_size)

    def _say_that_it_interpolates(self) -> None:
        if not self._interpolates:
            logger.warning(
                "Teacher.image_size: the data loader gives no pixels of the teacher's own size, so "
                "the student's are interpolated. d2kd.data.TwoSizeMapper gives both."
            )
        self._interpolates = True

    def _in_frame(
        self, knowledge: Knowledge, scales: Sequence[tuple[float, float]], padded_size: Size
    ) -> Knowledge:
        """Features of resized images, on the grids that they have in the student's frame."""
        features = {}
        for level, x in knowledge.features.items():
            stride = self.reader.shapes[level].stride
            rows, columns = (-(-side // stride) for side in padded_size)
            features[level] = resample(x, scales, (rows, columns))
        return replace(knowledge, features=features, padded_size=padded_size)


def _scaled(padded_size: Size, scales: Sequence[tuple[float, float]]) -> Size:
    """The student's padded size in pixels of the teacher.

    With images of several scales, the smallest one counts: one small image that is enlarged a lot
    must not enlarge the padding of all.
    """
    height, width = (
        math.ceil(side * min(scale[axis] for scale in scales))
        for axis, side in enumerate(padded_size)
    )
    return height, width


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
