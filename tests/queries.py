"""A small query detector in the form of DETR and detrex: backbone, neck, decoder, set criterion.

It is written for the tests. Names and calls are those of the released codes: `preprocess_image`,
`neck`, `criterion.matcher`, `criterion.get_loss(loss, outputs, targets, indices, num_boxes)`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from tests import toys


class Neck(nn.Module):
    """Projects the backbone's maps to one width and adds a coarser one, as detrex's mapper."""

    def __init__(self, shapes: dict[str, ShapeSpec], levels: list[str], width: int):
        super().__init__()
        self.levels = levels
        self.convs = nn.ModuleList(nn.Conv2d(shapes[x].channels, width, 1) for x in levels)
        self.extra = nn.Conv2d(shapes[levels[-1]].channels, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, ...]:
        maps = [conv(features[x]) for conv, x in zip(self.convs, self.levels, strict=True)]
        return *map(self.norm, maps), self.extra(features[self.levels[-1]])


class HungarianMatcher(nn.Module):
    @torch.no_grad()
    def forward(self, outputs: dict, targets: list[dict]) -> list[tuple[Tensor, Tensor]]:
        indices = []
        for logits, boxes, x in zip(
            outputs["pred_logits"], outputs["pred_boxes"], targets, strict=True
        ):
            corners = [box_convert(b, "cxcywh", "xyxy") for b in (boxes, x["boxes"])]
            cost = 5 * torch.cdist(boxes, x["boxes"], p=1) - 2 * generalized_box_iou(*corners)
            cost -= logits.sigmoid()[:, x["labels"]]
            rows, columns = linear_sum_assignment(cost.cpu())
            indices.append((torch.as_tensor(rows), torch.as_tensor(columns)))
        return indices


class SetCriterion(nn.Module):
    """Losses of matched queries, for the last layer and for each layer before it.

    Args:
        binary_encoder: the labels of "enc_outputs" are "object", as in Deformable DETR.
    """

    def __init__(self, num_classes: int, softmax: bool = False, binary_encoder: bool = False):
        super().__init__()
        self.num_classes, self.softmax, self.binary_encoder = num_classes, softmax, binary_encoder
        self.matcher = HungarianMatcher()
        self.losses = ["class", "boxes"]

    def forward(self, outputs: dict, targets: list[dict]) -> dict[str, Tensor]:
        num_boxes = max(sum(len(x["labels"]) for x in targets), 1)
        layers = {"": outputs}
        layers |= {f"_{i}": x for i, x in enumerate(outputs.get("aux_outputs", ()))}
        losses = {}
        for suffix, layer in layers.items():
            losses |= self._layer(layer, targets, num_boxes, suffix)
        if "enc_outputs" in outputs:
            if self.binary_encoder:
                targets = [{**x, "labels": torch.zeros_like(x["labels"])} for x in targets]
            losses |= self._layer(outputs["enc_outputs"], targets, num_boxes, "_enc")
        return losses

    def _layer(self, layer: dict, targets: list[dict], num_boxes: int, suffix: str) -> dict:
        indices = self.matcher(layer, targets)
        losses: dict[str, Tensor] = {}
        for loss in self.losses:
            losses |= self.get_loss(loss, layer, targets, indices, num_boxes)
        return {name + suffix: value for name, value in losses.items()}

    def get_loss(self, loss, outputs, targets, indices, num_boxes) -> dict[str, Tensor]:
        functions = {"class": self.loss_labels, "boxes": self.loss_boxes}
        return functions[loss](outputs, targets, indices, num_boxes)

    def loss_labels(self, outputs, targets, indices, num_boxes) -> dict[str, Tensor]:
        logits = outputs["pred_logits"]
        classes = torch.full(logits.shape[:2], self.num_classes)
        for row, (queries, boxes), x in zip(classes, indices, targets, strict=True):
            row[queries] = x["labels"][boxes]
        if self.softmax:
            return {"loss_class": F.cross_entropy(logits.flatten(0, 1), classes.flatten())}
        onehot = F.one_hot(classes, self.num_classes + 1)[..., :-1].to(logits)
        return {"loss_class": sigmoid_focal_loss(logits, onehot, reduction="sum") / num_boxes}

    def loss_boxes(self, outputs, targets, indices, num_boxes) -> dict[str, Tensor]:
        matched = torch.cat(
            [boxes[i] for boxes, (i, _) in zip(outputs["pred_boxes"], indices, strict=True)]
        )
        truth = torch.cat([x["boxes"][j] for x, (_, j) in zip(targets, indices, strict=True)])
        return {"loss_bbox": F.l1_loss(matched, truth, reduction="sum") / num_boxes}


class QueryDetector(nn.Module):
    """Queries that look at the neck's maps in two decoder layers.

    Args:
        returns: what `preprocess_image` returns, "ImageList", "Tensor", "list" (of images of one
            size) or "tuple" (an ImageList and something else, as in Sparse R-CNN).
        two_stage: predict in each cell of the maps, too, as the encoders of two-stage DETRs do.
    """

    def __init__(
        self,
        num_classes: int = 3,
        width: int = 4,
        channels: int = 16,
        num_queries: int = 6,
        *,
        neck: bool = True,
        softmax: bool = False,
        two_stage: bool = False,
        returns: str = "ImageList",
        **criterion,
    ):
        super().__init__()
        # As in DETR, without a pyramid.
        self.backbone = toys.pyramid(width).bottom_up
        shapes = self.backbone.output_shape()
        self.neck = Neck(shapes, ["res4", "res5"], channels) if neck else None
        self.input_proj = None if neck else nn.Conv2d(shapes["res5"].channels, channels, 1)
        self.query_embed = nn.Embedding(num_queries, channels)
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(channels, 2, 2 * channels, 0.0, batch_first=True)
            for _ in range(2)
        )
        self.class_embed = nn.Linear(channels, num_classes + softmax)
        self.bbox_embed = nn.Linear(channels, 4)
        self.criterion = SetCriterion(num_classes, softmax, **criterion)
        self.num_classes, self.num_queries, self.softmax = num_classes, num_queries, softmax
        self.test_topk_per_image = 4
        self.two_stage, self.returns = two_stage, returns
        # As in detrex: no buffers, but a function.
        mean, std = (torch.full((3, 1, 1), x) for x in (120.0, 60.0))
        self.normalizer = lambda x: (x - mean) / std

    def preprocess_image(self, batched_inputs: list[dict]):
        images = [self.normalizer(x["image"]) for x in batched_inputs]
        padded = ImageList.from_tensors(images)
        return {
            "ImageList": padded,
            "Tensor": padded.tensor,
            "list": images,
            "tuple": (padded, [x.shape for x in images]),
        }[self.returns]

    def predict(self, states: Tensor) -> dict[str, Tensor]:
        boxes = self.bbox_embed(states).sigmoid()
        return {"pred_logits": self.class_embed(states), "pred_boxes": boxes}

    def forward(self, batched_inputs: list[dict]):
        images = ImageList.from_tensors([self.normalizer(x["image"]) for x in batched_inputs])
        features = self.backbone(images.tensor)
        maps = self.neck(features) if self.neck else [self.input_proj(features["res5"])]
        memory = torch.cat([x.flatten(2).mT for x in maps], 1)
        states, layers = self.query_embed.weight.expand(len(memory), -1, -1), []
        for layer in self.decoder:
            states = layer(states, memory)
            layers.append(self.predict(states))
        outputs: dict = {**layers[-1], "aux_outputs": layers[:-1]}
        if self.two_stage:
            outputs["enc_outputs"] = self.predict(memory)
        if self.training:
            return self.criterion(outputs, self.prepare_targets(batched_inputs))
        return self.inference(outputs, batched_inputs, images.image_sizes)

    def prepare_targets(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        targets = []
        for x in (x["instances"] for x in batched_inputs):
            height, width = x.image_size
            relative = x.gt_boxes.tensor / torch.tensor([width, height, width, height])
            boxes = box_convert(relative, "xyxy", "cxcywh")
            targets.append({"labels": x.gt_classes, "boxes": boxes})
        return targets

    def inference(self, outputs: dict, batched_inputs: list[dict], sizes: list) -> list[dict]:
        logits = outputs["pred_logits"]
        probabilities = logits.softmax(-1)[..., :-1] if self.softmax else logits.sigmoid()
        results = []
        for i, ((height, width), x) in enumerate(zip(sizes, batched_inputs, strict=True)):
            scores, order = probabilities[i].flatten().topk(self.test_topk_per_image)
            queries, classes = order // self.num_classes, order % self.num_classes
            found = Instances((height, width), scores=scores, pred_classes=classes)
            boxes = outputs["pred_boxes"][i][queries]
            found.pred_boxes = Boxes(box_convert(boxes, "cxcywh", "xyxy"))
            found.pred_boxes.scale(width, height)
            results.append(
                {"instances": detector_postprocess(found, x.get("height"), x.get("width"))}
            )
        return results
