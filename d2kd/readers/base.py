"""Where a detector keeps what the methods want to see, and the hooks that fetch it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn

from ..knowledge import Knowledge
from ..targets import Targets

__all__ = ["Reader"]

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
            # Methods compare maps of one layout; a detector's own may be channels last.
            return x[..., :rows, :columns].float().contiguous()

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
