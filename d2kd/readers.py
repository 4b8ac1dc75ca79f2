"""How to read `Knowledge` out of a meta-architecture: one function per kind of detector."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import FCOS, GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes
from torch import Tensor, nn

from .knowledge import Knowledge
from .targets import Targets

__all__ = ["AnchorReader", "Reader", "check_same_anchors", "read"]

_OUTPUTS = frozenset({"logits", "boxes"})


@dataclass(frozen=True)
class Reader:
    """Where one detector keeps what the methods want to see.

    What methods can ask for (`needs`): "features", the neck's maps; "logits", what the dense head
    says (logits, deltas, quality); "towers", the first block of each of its towers; "boxes", its
    decoded boxes and its anchors.

    Attributes:
        detector: the detector itself.
        backbone: module that maps (N, 3, H, W) to a dict of pyramid maps by level name.
        num_classes: K of the detector's classifier.
        head: module that maps the list of `head_levels` maps to a tuple of lists: class logits
            (N, A*K, H, W), box regression (N, A*D, H, W) and perhaps quality (N, A, H, W); None
            where the detector has no dense head.
        head_levels: names of the levels that the head sees, in its order.
        num_logits: K of the head's logits; 1 for the objectness of a proposal network. Default:
            `num_classes`.
    """

    detector: nn.Module
    backbone: nn.Module
    num_classes: int
    head: nn.Module | None = None
    head_levels: tuple[str, ...] = ()
    num_logits: int | None = None

    padding = 0
    """Anchors beyond an image's size rounded up to a multiple of this are nobody's; 0: none is."""

    def __post_init__(self) -> None:
        if self.num_logits is None:
            object.__setattr__(self, "num_logits", self.num_classes)

    @property
    def name(self) -> str:
        return type(self.detector).__name__

    @property
    def shapes(self) -> dict[str, ShapeSpec]:
        """Level name -> channels and stride, finest first."""
        shapes = self.backbone.output_shape()
        return dict(sorted(shapes.items(), key=lambda item: item[1].stride))

    @property
    def towers(self) -> tuple[nn.Module, nn.Module] | None:
        """The activations that end the first block of the two towers, if the head has towers."""
        towers = [getattr(self.head, name, None) for name in ("cls_subnet", "bbox_subnet")]
        taps = [
            next((m for m in tower if isinstance(m, nn.ReLU)), None)
            for tower in towers
            if isinstance(tower, nn.Sequential)
        ]
        return tuple(taps) if len(taps) == 2 and None not in taps else None

    @property
    def tower_channels(self) -> tuple[int, int]:
        """Channels of the first block of the classification and of the regression tower."""
        return self.head.cls_subnet[0].out_channels, self.head.bbox_subnet[0].out_channels

    @property
    def offers(self) -> frozenset[str]:
        """What this detector can show."""
        offers = {"features"}
        if self.head is not None:
            offers.add("logits")
        if self.towers is not None:
            offers.add("towers")
        return frozenset(offers)

    @contextmanager
    def listen(
        self, needs: Collection[str], before: Callable[[Tensor], None] | None = None
    ) -> Iterator[Knowledge]:
        """Fill a `Knowledge` while the detector runs inside the `with` block.

        The hooks exist only inside the block, and only the returned object holds the maps. Pass
        it to `complete` to get all that was asked for.

        Args:
            needs: what to show.
            before: called with the normalised and padded images, (N, 3, H, W), just before the
                backbone sees them.
        """
        seen = Knowledge()
        taps: tuple[list[Tensor], list[Tensor]] = ([], [])

        def on_images(_module: nn.Module, args: tuple) -> None:
            seen.padded_size = tuple(args[0].shape[-2:])
            if before is not None:
                before(args[0])

        def on_backbone(_module: nn.Module, _args: tuple, output: dict[str, Tensor]) -> None:
            seen.features = dict(output)

        def on_head(_module: nn.Module, _args: tuple, output: tuple) -> None:
            for name, maps in zip(("logits", "deltas", "quality"), output, strict=False):
                setattr(seen, name, dict(zip(self.head_levels, maps, strict=True)))

        def on_towers(_module: nn.Module, _args: tuple, _output: tuple) -> None:
            for name, maps in zip(("cls_tower", "box_tower"), taps, strict=True):
                setattr(seen, name, dict(zip(self.head_levels, maps, strict=True)))

        handles = [
            self.backbone.register_forward_pre_hook(on_images),
            self.backbone.register_forward_hook(on_backbone),
        ]
        if _OUTPUTS & set(needs):
            handles.append(self.head.register_forward_hook(on_head))
        if "towers" in needs:
            for module, maps in zip(self.towers, taps, strict=True):
                # The towers are shared by all levels: one call a level, in the head's order.
                handles.append(
                    module.register_forward_hook(lambda _m, _a, out, maps=maps: maps.append(out))
                )
            handles.append(self.head.register_forward_hook(on_towers))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def complete(
        self, seen: Knowledge, needs: Collection[str], frame: tuple[int, int] | None = None
    ) -> Knowledge:
        """What `listen` saw, in fp32, over one frame, with boxes decoded where they are needed.

        Squared sums and softmax over whole maps overflow or round off in half precision.

        Args:
            seen: filled by `listen`.
            needs: what was asked for.
            frame: height and width in pixels. A detector with another size divisibility sees more
                padding than its partner; cells beyond the frame are cut off. Both grids start at
                the same corner, so that nothing shifts. Default: all of it.
        """
        rows_columns = {
            level: [-(-side // shape.stride) for side in frame or seen.padded_size]
            for level, shape in self.shapes.items()
        }

        def cut(level: str, x: Tensor) -> Tensor:
            rows, columns = rows_columns[level]
            return x[..., :rows, :columns].float()

        whole = seen.map_levels(cut)
        if frame is not None:
            whole.padded_size = frame
        if "boxes" in needs:
            self.decode(whole)
        return whole

    def decode(self, seen: Knowledge) -> None:
        """Fill `boxes` and `anchors` from `deltas`."""
        raise NotImplementedError

    def assign(self, seen: Knowledge, targets: Targets) -> Tensor:
        """The detector's own label assignment.

        Args:
            seen: with boxes. Assigners that depend on predictions see these.
            targets: ground truth.

        Returns:
            (N, R) long, index of the box in [0, G) for which an anchor is positive, else -1.
        """
        raise NotImplementedError

    def flatten(self, maps: dict[str, Tensor], dims: int) -> Tensor:
        """Level name -> (N, A*dims, H, W) to (N, R, dims), in the order of the anchors."""
        return torch.cat([permute_to_N_HWA_K(maps[name], dims) for name in self.head_levels], 1)

    def run(
        self, images: Tensor, needs: Collection[str], frame: tuple[int, int] | None = None
    ) -> Knowledge:
        """The forward pass as far as `needs` asks, without assignment, losses or NMS.

        Args:
            images: (N, 3, H, W), normalised and padded.
            needs, frame: see `complete`.
        """
        with self.listen(needs) as seen:
            features = self.backbone(images)
            if set(needs) - {"features"}:
                self.head([features[level] for level in self.head_levels])
        return self.complete(seen, needs, frame)


@dataclass(frozen=True)
class AnchorReader(Reader):
    """Reader of a dense head on anchors of Detectron2's kind.

    Attributes:
        anchor_generator: makes the anchors from the list of the head's maps.
        box2box_transform: Detectron2's coding of boxes.
    """

    anchor_generator: nn.Module | None = None
    box2box_transform: object | None = None

    @property
    def offers(self) -> frozenset[str]:
        return super().offers | {"boxes"}

    def anchors(self, seen: Knowledge) -> list[Boxes]:
        """Detectron2's anchors, one entry a level, on the grids of `seen.logits`."""
        return self.anchor_generator([seen.logits[level] for level in self.head_levels])

    def decode(self, seen: Knowledge) -> None:
        seen.anchors = Boxes.cat(self.anchors(seen)).tensor
        deltas = self.flatten(seen.deltas, 4)
        anchors = seen.anchors.expand_as(deltas)
        boxes = self.box2box_transform.apply_deltas(deltas.reshape(-1, 4), anchors.reshape(-1, 4))
        seen.boxes = boxes.view_as(deltas)

    @torch.no_grad()
    def assign(self, seen: Knowledge, targets: Targets) -> Tensor:
        labels, boxes = self.detector.label_anchors(self.anchors(seen), targets.instances())
        labels, boxes = torch.stack(labels), torch.stack(boxes)
        # Detectron2 says which box and class an anchor got; which of the G boxes is that?
        same = (boxes[:, :, None] == targets.boxes[:, None]).all(-1)
        same &= labels[:, :, None] == targets.classes[:, None]
        same &= targets.valid[:, None]
        index = torch.arange(same.shape[-1], device=same.device)
        # The first of the boxes that are the same; without any, -1.
        first = torch.where(same, index, same.shape[-1]).amin(-1) if same.shape[-1] else labels
        return torch.where(same.any(-1), first, -1)


def check_same_anchors(student: Reader, teacher: Reader, who: str) -> None:
    """Check that both heads predict for the same anchors, in the same order.

    Raises:
        ValueError: they do not; the message says what differs.
    """
    for what, value in (
        ("anchors", lambda reader: "anchors" if isinstance(reader, AnchorReader) else "none"),
        ("strides of the head", lambda r: [r.shapes[level].stride for level in r.head_levels]),
        (
            "anchors in a cell",
            lambda r: [cell.tolist() for cell in r.anchor_generator.cell_anchors],
        ),
        ("offset of the anchors", lambda r: r.anchor_generator.offset),
    ):
        found = value(student), value(teacher)
        if found[0] != found[1]:
            raise ValueError(
                f"{who}: expected student ({student.name}) and teacher ({teacher.name}) with the "
                f"same {what}, found {found[0]} and {found[1]}. Give both the same, or use a "
                f"feature method such as FGD."
            )


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
def _(detector: DenseDetector) -> Reader:
    return Reader(**_dense(detector))


@read.register(RetinaNet)
@read.register(FCOS)
def _(detector: DenseDetector) -> Reader:
    return AnchorReader(
        **_dense(detector),
        anchor_generator=detector.anchor_generator,
        box2box_transform=detector.box2box_transform,
    )


@read.register
def _(detector: GeneralizedRCNN) -> Reader:  # Faster, Mask and Cascade R-CNN
    base = dict(
        detector=detector,
        backbone=detector.backbone,
        num_classes=detector.roi_heads.num_classes,
    )
    rpn = detector.proposal_generator
    if not isinstance(rpn, RPN):
        return Reader(**base)
    return AnchorReader(
        **base,
        head=rpn.rpn_head,
        head_levels=tuple(rpn.in_features),
        num_logits=1,
        anchor_generator=rpn.anchor_generator,
        box2box_transform=rpn.box2box_transform,
    )


def _dense(detector: DenseDetector) -> dict:
    return dict(
        detector=detector,
        backbone=detector.backbone,
        num_classes=detector.num_classes,
        head=detector.head,
        head_levels=tuple(detector.head_in_features),
    )
