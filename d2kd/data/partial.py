"""Images whose labels say only a part: by teachers, of some classes, or none at all."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import detection_utils as utils

from ..signature import merge_signature

__all__ = [
    "PartialMapper",
    "load_unlabelled",
    "mix",
    "only",
    "register_only",
    "share",
    "without",
]

Images = list[dict]


@merge_signature
class PartialMapper(DatasetMapper):
    """Detectron2's `DatasetMapper` that keeps what labels leave open, for `Distiller`.

    It adds to its output: "ignore_boxes", float32 (I, 4) x1y1x2y2 in pixels of the output image,
    the annotations with `pseudo_ignore`; `gt_weights` of the instances, the annotations' `weight`,
    where one has any; and "annotated_classes" as it is, class indices.

    Args:
        ignore_crowds: ignore all annotations with `iscrowd`, and not only those of teachers.
            Detectron2 itself drops them: what they show is background.
        mapper: see `DatasetMapper`.
    """

    def __init__(self, is_train: bool, *, ignore_crowds: bool = False, **mapper):
        super().__init__(is_train, **mapper)
        self.ignore_crowds = ignore_crowds

    def _transform_annotations(self, dataset_dict, transforms, image_shape) -> None:
        # Detectron2's own method forgets which annotation a box came from; this is its sequence.
        annotations = dataset_dict.pop("annotations")
        key = "iscrowd" if self.ignore_crowds else "pseudo_ignore"
        regions = [
            utils.transform_instance_annotations(
                {k: a[k] for k in ("bbox", "bbox_mode")}, transforms, image_shape
            )["bbox"]
            for a in annotations
            if a.get(key)
        ]
        boxes = torch.as_tensor(np.array(regions, dtype=np.float32).reshape(-1, 4))
        dataset_dict["ignore_boxes"] = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]

        unused = {"segmentation"} if not self.use_instance_mask else set()
        unused |= {"keypoints"} if not self.use_keypoint else set()
        kept = [
            {k: v for k, v in a.items() if k not in unused}
            for a in annotations
            if not a.get("iscrowd", 0)
        ]
        instances = utils.annotations_to_instances(
            [
                utils.transform_instance_annotations(
                    a, transforms, image_shape, keypoint_hflip_indices=self.keypoint_hflip_indices
                )
                for a in kept
            ],
            image_shape,
            mask_format=self.instance_mask_format,
        )
        if any(a.get("weight", 1.0) != 1.0 for a in kept):
            instances.gt_weights = torch.tensor([float(a.get("weight", 1.0)) for a in kept])
        if self.recompute_boxes and instances.has("gt_masks"):  # boxes by teachers have none
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)


def load_unlabelled(name: str) -> Images:
    """A registered data set as images that were not searched for anything, whatever its labels.

    Detection losses leave them out; methods that compare features or predictions do not.
    """
    images = DatasetCatalog.get(name)
    return [{**image, "annotations": [], "annotated_classes": []} for image in images]


def only(name: str, classes: Sequence[str]) -> Images:
    """A registered data set with the boxes of some classes only. All images stay.

    Boxes of other classes are background, as in data that were made for these classes alone.

    Args:
        classes: names; class indices count in this order.

    Raises:
        ValueError: the data set has no such class.
    """
    images = DatasetCatalog.get(name)
    names = list(MetadataCatalog.get(name).thing_classes)
    if unknown := [c for c in classes if c not in names]:
        raise ValueError(f"only: expected classes of {name!r}, {names}, found {unknown}")
    index = {names.index(c): i for i, c in enumerate(classes)}
    return [
        {
            **image,
            "annotations": [
                {**a, "category_id": index[a["category_id"]]}
                for a in image["annotations"]
                if a["category_id"] in index
            ],
        }
        for image in images
    ]


def register_only(name: str, dataset: str, classes: Sequence[str]) -> None:
    """Register what `only` makes of a data set, unless the name is taken. Nothing is read.

    Detectron2's COCOEvaluator wants an `output_dir` for such a set, where it writes its JSON.
    """
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, functools.partial(only, dataset, list(classes)))
        MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type="coco")


def share(dataset: Images, share: float, seed: int = 0, rest: str = "drop") -> Images:
    """A fixed random share of a data set, the same for the same images, share and seed.

    Args:
        share: in (0, 1]; a larger share contains the smaller ones.
        rest: "drop" the other images, or keep them as "unlabelled".

    Raises:
        ValueError: a share outside (0, 1], or without any image.
    """
    if not 0 < share <= 1 or rest not in ("drop", "unlabelled"):
        raise ValueError(
            f"share: expected a share in (0, 1] and rest 'drop' or 'unlabelled', found {share} and "
            f"{rest!r}"
        )
    # Ids decide, not the order in which a file lists them.
    order = sorted(range(len(dataset)), key=lambda i: str(dataset[i]["image_id"]))
    random.Random(seed).shuffle(order)
    chosen = set(order[: round(share * len(dataset))])
    if not chosen:
        raise ValueError(f"share: expected images, found none in {share} of {len(dataset)}")
    blank = {"annotations": [], "annotated_classes": []}
    return [
        image if i in chosen else {**image, **blank}
        for i, image in enumerate(dataset)
        if i in chosen or rest == "unlabelled"
    ]


def without(dataset: Images, images: Images) -> Images:
    """A data set without the images that another one has.

    They are the same by their files: labels number images in their own way where a data set's ids
    are no numbers, and a folder has none.

    Raises:
        ValueError: the two share no image.
    """
    known = {os.path.abspath(image["file_name"]) for image in images}
    rest = [i for i in dataset if os.path.abspath(i["file_name"]) not in known]
    if len(rest) == len(dataset):
        examples = [i[0]["file_name"] if i else "none" for i in (dataset, images)]
        raise ValueError(
            f"without: expected images that both sets have, found none: {examples[0]} and "
            f"{examples[1]} are examples. If a folder was moved, see image_root of "
            f"d2kd.pseudo.coco.read."
        )
    return rest


def mix(shares: Sequence[float] | None = None, seed: int = 0, **parts: Images) -> Images:
    """Several data sets as one, in which each has a set share.

    Images of a set that is too small for its share are repeated, some once more than others, by
    the seed; of none are any left out. As it is a list, sampling, epochs and exact resuming work as
    ever; the share of a batch holds on average.

    Args:
        shares: of each set, in their order, in any unit; default: as they are.
        parts: the sets, by any names. Not as a list: of a list in a LazyConfig, Detectron2 makes
            one of OmegaConf's, whose every image knows, and takes along, all others.

    Raises:
        ValueError: no shares for some sets, or a share that is not positive; an empty set.
    """
    sizes = {name: len(part) for name, part in parts.items()}
    if not parts or not all(sizes.values()):
        raise ValueError(f"mix: expected images in each set, found {sizes}")
    if shares is None:
        return [image for part in parts.values() for image in part]
    if len(shares) != len(parts) or min(shares) <= 0:
        raise ValueError(f"mix.shares: expected {len(parts)} numbers > 0, found {list(shares)}")
    # The set that is the largest for its share stays as it is.
    unit = max(n / s for n, s in zip(sizes.values(), shares, strict=True))
    mixed: Images = []
    for i, (part, s) in enumerate(zip(parts.values(), shares, strict=True)):
        times, more = divmod(round(unit * s), len(part))
        extra = random.Random(f"{seed}/{i}").sample(range(len(part)), more)
        mixed += list(part) * times + [part[k] for k in sorted(extra)]
    return mixed
