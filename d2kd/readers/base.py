"""Where a detector keeps the maps that methods ask for, and the hooks that capture them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..knowledge import Knowledge
from ..targets import Targets

__all__ = ["Reader", "Tap"]


class Tap(NamedTuple):
    """A module inside the head whose output methods can ask for.

    Attributes:
        module: the head calls it once for each level, in the order of `head_in_features`.
        channels: number of channels of its output.
    """

    module: nn.Module
    channels: int


@dataclass(frozen=True)
class Reader:
    """Where one detector keeps the maps that methods ask for.

    Methods name what they need. `needs` can hold "features": the neck's maps; "logits": all outputs
    of the dense head (class logits, box regression, quality); "boxes": the decoded boxes and their
    anchors; and the names in `taps`, such as "cls_tower.1".

    Attributes:
        detector: the detector itself.
        backbone: module that maps (N, 3, H, W) to a dict of pyramid maps by level name.
        num_classes: K, the number of classes of the detector's classifier; 0 if it has none.
        head: module that maps the list of `head_in_features` maps to a tuple of lists: class logits
            (N, A*K, H, W), box regression (N, A*D, H, W) and perhaps quality (N, A, H, W). None if
            the detector has no dense head.
        head_in_features: names of the levels that the head gets, in its order.
        num_logits: K of the head's logits; 1 for the objectness of a proposal network. 0 stands
            for `num_classes`.
        padding: anchors outside the image, whose size is first rounded up to a multiple of this
            number of pixels, are never assigned to a box. 0 turns this off.
    """

    # Modules whose attributes depend on the detector, so they are not typed as nn.Module.
    detector: Any
    backbone: Any
    num_classes: int
    head: nn.Module | None = None
    head_in_features: tuple[str, ...] = ()
    num_logits: int = 0
    padding: int = 0

    def __post_init__(self) -> None:
        if not self.num_logits:
            object.__setattr__(self, "num_logits", self.num_classes)

    @property
    def name(self) -> str:
        """Name of the detector's class, for messages."""
        return type(self.detector).__name__

    @property
    def shapes(self) -> dict[str, ShapeSpec]:
        """Level name -> channels and stride, finest level first."""
        shapes = self.backbone.output_shape()
        return dict(sorted(shapes.items(), key=lambda item: item[1].stride))

    @property
    def taps(self) -> dict[str, Tap]:
        """Tap name -> module inside the head; empty for a head without two towers.

        "cls_tower.i" and "box_tower.i" are the outputs of block i of the classification and of the
        regression tower, where i counts from 1. A block ends with its activation: for example, a
        convolution, a norm and a ReLU. A subclass can add names for a head of another kind.
        """
        taps: dict[str, Tap] = {}
        for name, subnet in (("cls_tower", "cls_subnet"), ("box_tower", "bbox_subnet")):
            tower = getattr(self.head, subnet, None)
            block, channels = 0, 0
            for module in tower if isinstance(tower, nn.Sequential) else ():
                channels = getattr(module, "out_channels", channels)
                if isinstance(module, nn.ReLU):
                    block += 1
                    taps[f"{name}.{block}"] = Tap(module, channels)
        return taps if {"cls_tower.1", "box_tower.1"} <= taps.keys() else {}

    @property
    def provides(self) -> frozenset[str]:
        """All names that `needs` can hold for this detector."""
        provides = {"features", *self.taps}
        if self.head is not None:
            provides.add("logits")
        return frozenset(provides)

    def images(self, batched_inputs: Sequence[dict]) -> Tensor:
        """Normalize and pad images as the detector does, whatever its `preprocess_image` returns.

        A detector without `preprocess_image` (Mask2Former) is normalized by its `normalizer`, or by
        its `pixel_mean` and `pixel_std`.

        Args:
            batched_inputs: "image" is (3, H, W), raw pixels in [0, 255].

        Returns:
            (N, 3, H, W), on the detector's device.

        Raises:
            TypeError: the detector has none of these, or returns something else.
        """
        device = next(self.detector.parameters()).device
        preprocess = getattr(self.detector, "preprocess_image", None)
        if preprocess is not None:
            return _tensor(preprocess(batched_inputs), self.name).to(device)
        normalize = getattr(self.detector, "normalizer", None)
        if normalize is None and not hasattr(self.detector, "pixel_mean"):
            raise TypeError(
                f"{self.name}: expected preprocess_image, normalizer, or pixel_mean and pixel_std, "
                f"so that a teacher can normalize its images, found none of them. Write a reader "
                f"with `images` and register it with @d2kd.readers.get_reader.register."
            )
        images = [x["image"].to(device) for x in batched_inputs]
        if normalize is None:
            mean, std = self.detector.pixel_mean, self.detector.pixel_std
            return ImageList.from_tensors([(x - mean) / std for x in images]).tensor
        return ImageList.from_tensors([normalize(x) for x in images]).tensor

    @contextmanager
    def capture(
        self, needs: Collection[str], on_images: Callable[[Tensor], None] | None = None
    ) -> Iterator[Knowledge]:
        """Fill a `Knowledge` while the detector runs inside the `with` block.

        The hooks exist only inside the block, and only the returned object holds the maps. Pass
        it to `finalize` to get all that `needs` names.

        Args:
            needs: names of what to capture; see `Reader`.
            on_images: called with the normalized and padded images, (N, 3, H, W), just before the
                backbone gets them.

        Raises:
            ValueError: `needs` holds a name that this detector does not provide.
        """
        unknown = sorted(set(needs) - self.provides)
        if unknown:
            raise ValueError(
                f"needs of {self.name}: expected names among {', '.join(sorted(self.provides))}, "
                f"found {', '.join(unknown)}"
            )
        knowledge = Knowledge()
        if self.taps:
            knowledge.run_head_from = self.run_head_from
        tapped: dict[str, list[Tensor]] = {name: [] for name in self.taps if name in needs}

        def before_backbone(_module: nn.Module, args: tuple) -> None:
            knowledge.padded_size = tuple(args[0].shape[-2:])
            if on_images is not None:
                on_images(args[0])

        def after_backbone(_module: nn.Module, _args: tuple, output: dict[str, Tensor]) -> None:
            knowledge.features = dict(output)

        def after_head(_module: nn.Module, _args: tuple, output: tuple) -> None:
            self._store_outputs(knowledge, output)

        def after_taps(_module: nn.Module, _args: tuple, _output: tuple) -> None:
            for name, maps in tapped.items():
                knowledge.taps[name] = dict(zip(self.head_in_features, maps, strict=True))

        handles = [
            self.backbone.register_forward_pre_hook(before_backbone),
            self.backbone.register_forward_hook(after_backbone),
        ]
        if self.head is not None and {"logits", "boxes"} & set(needs):
            handles.append(self.head.register_forward_hook(after_head))
        if self.head is not None and tapped:
            taps = self.taps
            for name, maps in tapped.items():
                # All levels share the towers: a module is called once a level, in the head's order.
                handles.append(
                    taps[name].module.register_forward_hook(
                        lambda _m, _a, output, maps=maps: maps.append(output)
                    )
                )
            handles.append(self.head.register_forward_hook(after_taps))
        try:
            yield knowledge
        finally:
            for handle in handles:
                handle.remove()

    def _store_outputs(self, knowledge: Knowledge, output: tuple) -> None:
        for name, maps in zip(("logits", "deltas", "quality"), output, strict=False):
            setattr(knowledge, name, dict(zip(self.head_in_features, maps, strict=True)))

    def finalize(
        self,
        knowledge: Knowledge,
        needs: Collection[str],
        crop_size: tuple[int, int] | None = None,
    ) -> Knowledge:
        """Turn what `capture` filled into what methods get.

        Maps become fp32, because squared sums and softmax over whole maps overflow or round off in
        half precision. Boxes are decoded if `needs` holds "boxes".

        Args:
            knowledge: filled by `capture`.
            needs: the names that were captured.
            crop_size: height and width in pixels. A detector with another size divisibility pads
                more than its partner; cells beyond `crop_size` are cut off. Both grids start at the
                same corner, so that no cell moves. Default: keep all cells.
        """
        rows_columns = {
            level: [-(-side // shape.stride) for side in crop_size or knowledge.padded_size]
            for level, shape in self.shapes.items()
        }

        def crop(level: str, x: Tensor) -> Tensor:
            rows, columns = rows_columns[level]
            # Methods compare maps of one memory layout; a detector may run channels last.
            return x[..., :rows, :columns].float().contiguous()

        finalized = knowledge.map_levels(crop)
        if crop_size is not None:
            finalized.padded_size = crop_size
        if "boxes" in needs:
            self.decode(finalized)
        return finalized

    def decode(self, knowledge: Knowledge) -> None:
        """Fill `boxes` and `anchors` of `knowledge` from its `deltas`."""
        raise NotImplementedError

    def assign(self, knowledge: Knowledge, targets: Targets) -> Tensor:
        """Assign boxes to anchors by the detector's own label assignment.

        Args:
            knowledge: with boxes. An assigner that depends on predictions uses these predictions.
            targets: ground truth of G boxes per image.

        Returns:
            (N, R) long, index in [0, G) of the box for which an anchor is positive, else -1.
        """
        raise NotImplementedError

    def flatten(self, maps: Mapping[str, Tensor], dims: int) -> Tensor:
        """Level name -> (N, A*dims, H, W) to (N, R, dims), in the order of the anchors."""
        levels = [permute_to_N_HWA_K(maps[name], dims) for name in self.head_in_features]
        return torch.cat(levels, 1)

    def run(
        self, images: Tensor, needs: Collection[str], crop_size: tuple[int, int] | None = None
    ) -> Knowledge:
        """Run the detector as far as `needs` asks, without label assignment, losses or NMS.

        Args:
            images: (N, 3, H, W), normalized and padded.
            needs, crop_size: see `finalize`.
        """
        with self.capture(needs) as knowledge:
            features = self.backbone(images)
            if self.head is not None and set(needs) - {"features"}:
                self.head([features[level] for level in self.head_in_features])
        return self.finalize(knowledge, needs, crop_size)

    def run_head_from(
        self,
        block: int,
        cls_maps: Mapping[str, Tensor],
        box_maps: Mapping[str, Tensor],
        needs: Collection[str] = ("logits",),
    ) -> Knowledge:
        """Run the rest of the head on maps that stand for the output of one block of its towers.

        Gradients flow to the maps and not to the head's weights. The head must be in eval mode, as
        a teacher's head is, and its outputs must depend on its towers only.

        Args:
            block: number of the block that the maps stand for, from 1.
            cls_maps, box_maps: level name of this detector -> (N, C, H, W), for the classification
                and the regression tower; one map for each of `head_in_features`.
            needs: "logits" for all outputs of the head; add "boxes" to decode them.

        Returns:
            Knowledge with the head's outputs only, in fp32.

        Raises:
            ValueError: the towers have no such block.
        """
        towers = (("cls_tower", cls_maps), ("box_tower", box_maps))
        lacking = [f"{name}.{block}" for name, _ in towers if f"{name}.{block}" not in self.taps]
        if self.head is None or lacking:
            raise ValueError(
                f"run_head_from: expected a head of {self.name} with {', '.join(lacking)}, found "
                f"{', '.join(self.taps) or 'no towers'}"
            )
        handles = []
        for name, maps in towers:
            inputs = iter([maps[level] for level in self.head_in_features])
            handles.append(
                self.taps[f"{name}.{block}"].module.register_forward_hook(
                    lambda _m, _a, _o, inputs=inputs: next(inputs)
                )
            )
        # The hooks replace the output of the blocks up to this one, so these may run on tiny maps.
        tiny = [
            cls_maps[level].new_zeros(len(cls_maps[level]), self.shapes[level].channels, 2, 2)
            for level in self.head_in_features
        ]
        try:
            with _without_weight_gradients(self.head):
                output = self.head(tiny)
        finally:
            for handle in handles:
                handle.remove()
        knowledge = Knowledge()
        self._store_outputs(knowledge, output)
        knowledge = knowledge.map_levels(lambda _level, x: x.float())
        if "boxes" in needs:
            self.decode(knowledge)
        return knowledge


def _tensor(found: Any, name: str) -> Tensor:
    """The padded batch (N, 3, H, W) in what a `preprocess_image` returned.

    That is an ImageList (Detectron2), the tensor itself, a list of images, or a tuple that begins
    with one of these (Sparse R-CNN).
    """
    if isinstance(found, Tensor) and found.dim() == 4:
        return found
    if isinstance(getattr(found, "tensor", None), Tensor):
        return found.tensor
    if isinstance(found, (list, tuple)) and len(found):
        if all(isinstance(x, Tensor) and x.dim() == 3 for x in found):
            return ImageList.from_tensors(list(found)).tensor
        return _tensor(found[0], name)
    raise TypeError(
        f"{name}.preprocess_image: expected an ImageList or tensors (3, H, W), found "
        f"{type(found).__name__}. Write a reader with `images` and register it with "
        f"@d2kd.readers.get_reader.register."
    )


@contextmanager
def _without_weight_gradients(module: nn.Module) -> Iterator[None]:
    """Let what runs inside the block record no gradient for the parameters of `module`."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
