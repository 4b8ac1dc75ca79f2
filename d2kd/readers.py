"""How to read `Knowledge` out of a meta-architecture: one function per kind of detector."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch

from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn

from .knowledge import Knowledge

__all__ = ["Reader", "read"]


@dataclass(frozen=True)
class Reader:
    """Where one detector keeps what the methods want to see.

    Attributes:
        detector: the detector itself.
        backbone: module that maps (N, 3, H, W) to a dict of pyramid maps by level name.
        num_classes: K of the detector's classifier.
        head: module that maps the list of `head_levels` maps to a tuple whose first entry is the
            list of class logits, each (N, A*K, H, W); None where the detector has no dense head.
        head_levels: names of the levels that the head sees, in its order.
    """

    detector: nn.Module
    backbone: nn.Module
    num_classes: int
    head: nn.Module | None = None
    head_levels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return type(self.detector).__name__

    @property
    def shapes(self) -> dict[str, ShapeSpec]:
        """Level name -> channels and stride, finest first."""
        shapes = self.backbone.output_shape()
        return dict(sorted(shapes.items(), key=lambda item: item[1].stride))

    @property
    def offers(self) -> frozenset[str]:
        """The fields of `Knowledge` that this detector can fill."""
        return frozenset({"features", "logits"} if self.head is not None else {"features"})

    @contextmanager
    def listen(self, needs: Collection[str]) -> Iterator[Knowledge]:
        """Fill a `Knowledge` while the detector runs inside the `with` block.

        The forward hooks exist only inside the block, and only the returned object holds the maps.
        """
        seen = Knowledge()

        def on_backbone(_module: nn.Module, args: tuple, output: dict[str, Tensor]) -> None:
            seen.padded_size = tuple(args[0].shape[-2:])
            seen.features = dict(output)

        def on_head(_module: nn.Module, _args: tuple, output: tuple) -> None:
            seen.logits = dict(zip(self.head_levels, output[0], strict=True))

        handles = [self.backbone.register_forward_hook(on_backbone)]
        if "logits" in needs:
            handles.append(self.head.register_forward_hook(on_head))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def run(self, images: Tensor, needs: Collection[str]) -> Knowledge:
        """The forward pass as far as `needs` asks, without assignment, losses or NMS.

        Args:
            images: (N, 3, H, W), normalised and padded.
        """
        with self.listen(needs) as seen:
            features = self.backbone(images)
            if "logits" in needs:
                self.head([features[level] for level in self.head_levels])
        return seen


@singledispatch
def read(detector: nn.Module) -> Reader:
    """Give the `Reader` of a detector. Register a function here to support a new architecture.

    Raises:
        TypeError: nobody has registered this type or one of its bases.
    """
    known = ", ".join(kind.__name__ for kind in read.registry if kind is not object)
    raise TypeError(
        f"d2kd cannot read a {type(detector).__name__}: expected one of {known} or a subclass. "
        f"Write a function that returns a d2kd.readers.Reader for it and decorate the function "
        f"with @d2kd.readers.read.register."
    )


@read.register
def _(detector: DenseDetector) -> Reader:  # RetinaNet, FCOS
    return Reader(
        detector=detector,
        backbone=detector.backbone,
        num_classes=detector.num_classes,
        head=detector.head,
        head_levels=tuple(detector.head_in_features),
    )


@read.register
def _(detector: GeneralizedRCNN) -> Reader:  # Faster, Mask and Cascade R-CNN
    return Reader(
        detector=detector,
        backbone=detector.backbone,
        num_classes=detector.roi_heads.num_classes,
    )


