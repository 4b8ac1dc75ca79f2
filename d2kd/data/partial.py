"""Load images whose labels are incomplete, and combine datasets.

Labels are incomplete if teachers made them (regions to ignore, weights), if only some classes were
annotated, or if there are none. `PartialMapper` passes on what the labels say, and `Distiller`
masks the losses where labels are missing.

A dataset is a list of dicts in Detectron2's format. Besides the standard keys, a dict may have
"annotated_classes": the class indices that were searched for in the image; without the key, all.
"""

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
    "check_images",
    "exclude_images",
    "load_class_subset",
    "load_unlabeled",
    "mix",
    "random_subset",
    "register_class_subset",
]

Images = list[dict]


@merge_signature
class PartialMapper(DatasetMapper):
    """Detectron2's `DatasetMapper` that also passes on what `Distiller` needs to mask losses.

    In addition to `DatasetMapper`, its output has

    - "ignore_boxes": (I, 4) float32, x1y1x2y2 in pixels of the output image, the boxes of the
      annotations with ``pseudo_ignore``;
    - `gt_weights` of the instances: (G,) float32, the ``weight`` of each annotation, if one of them
      is not 1;
    - "annotated_classes", unchanged.

    Args:
        is_train: see `DatasetMapper`.
        ignore_crowds: ignore all annotations with ``iscrowd``, and not only teachers' regions to
            ignore. Detectron2 drops crowds, so that their regions are background.
        mapper: see `DatasetMapper`.
    """

    def __init__(self, is_train: bool, *, ignore_crowds: bool = False, **mapper):
        super().__init__(is_train, **mapper)
        self.ignore_crowds = ignore_crowds

    def _transform_annotations(self, dataset_dict, transforms, image_shape) -> None:
        # Detectron2's own method does not tell which annotation a box came from. This method does
        # the same steps in the same order.
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
        if self.recompute_boxes and instances.has("gt_masks"):  # boxes by teachers have no masks
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)


def check_images(field: str, images: Images) -> None:
    """
    Raises:
        ValueError: a field is the name of a dataset and not its images.
    """
    if isinstance(images, str):
        raise ValueError(
            f"{field}: expected a list of images, found the text {images!r}. If it is the name of "
            f"a dataset, load it with L(get_detection_dataset_dicts)(names={images!r})."
        )


def _check_name(field: str, name: str) -> None:
    if not isinstance(name, str):
        raise ValueError(
            f"{field}: expected the name of a registered dataset, found a {type(name).__name__}."
        )


def load_unlabeled(name: str) -> Images:
    """Load a registered dataset without its labels.

    The images get an empty "annotated_classes". Detection losses skip such images; methods that
    compare features or predictions use them.

    Raises:
        ValueError: `name` is no text.
    """
    _check_name("load_unlabeled.name", name)
    images = DatasetCatalog.get(name)
    return [{**image, "annotations": [], "annotated_classes": []} for image in images]


def load_class_subset(dataset: str, classes: Sequence[str]) -> Images:
    """Load a registered dataset with the boxes of some classes only. All images are kept.

    Objects of other classes become background, as in a dataset that was made for these classes
    alone.

    Args:
        dataset: name of the dataset.
        classes: class names. The new class indices follow their order.

    Raises:
        ValueError: `dataset` is no text, or the dataset does not have one of the classes.
    """
    _check_name("load_class_subset.dataset", dataset)
    images = DatasetCatalog.get(dataset)
    names = list(MetadataCatalog.get(dataset).thing_classes)
    if unknown := [c for c in classes if c not in names]:
        raise ValueError(f"classes: expected classes of {dataset!r}, {names}, found {unknown}")
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


def register_class_subset(name: str, dataset: str, classes: Sequence[str]) -> None:
    """Register the result of `load_class_subset` with Detectron2, unless `name` is registered.

    Nothing is read here. For such a dataset, give Detectron2's COCOEvaluator an `output_dir`: it
    writes a COCO file there.

    Args:
        name: name of the new dataset.
        dataset, classes: see `load_class_subset`.
    """
    if name not in DatasetCatalog:
        load = functools.partial(load_class_subset, dataset, list(classes))
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type="coco")


def random_subset(dataset: Images, share: float, seed: int = 0, rest: str = "drop") -> Images:
    """A random share of a dataset. The same images, share and seed give the same subset.

    Args:
        dataset: the images.
        share: in (0, 1]. With the same seed, a larger share contains the smaller ones.
        seed: for the choice.
        rest: what to do with the other images: "drop" them, or keep them as "unlabeled", as
            `load_unlabeled` does.

    Raises:
        ValueError: `dataset` is a name and not its images, the share is outside (0, 1] or so small
            that no image is left, or `rest` is unknown.
    """
    check_images("random_subset.dataset", dataset)
    if not 0 < share <= 1 or rest not in ("drop", "unlabeled"):
        raise ValueError(
            f"share: expected a share in (0, 1] and rest 'drop' or 'unlabeled', found {share} and "
            f"{rest!r}"
        )
    # The ids determine the choice, not the order of the images in their file.
    order = sorted(range(len(dataset)), key=lambda i: str(dataset[i]["image_id"]))
    random.Random(seed).shuffle(order)
    chosen = set(order[: round(share * len(dataset))])
    if not chosen:
        raise ValueError(f"share: expected images, found none in {share} of {len(dataset)}")
    blank: dict[str, list] = {"annotations": [], "annotated_classes": []}
    return [
        image if i in chosen else {**image, **blank}
        for i, image in enumerate(dataset)
        if i in chosen or rest == "unlabeled"
    ]


def exclude_images(dataset: Images, images: Images, must_overlap: bool = True) -> Images:
    """A dataset without the images that another dataset contains.

    Images are identified by their files. Ids would not do: pseudo labels have ids of their own if
    the ids of the dataset are not numbers, or if the images come from a folder.

    Args:
        dataset: the images to choose from.
        images: the images to leave out.
        must_overlap: whether the two must have an image in common. Set it to False where this is
            not known: nothing then tells that the paths of one set are wrong.

    Raises:
        ValueError: one of them is a name and not its images, or the two have no image in common
            although they must.
    """
    check_images("exclude_images.dataset", dataset)
    check_images("exclude_images.images", images)
    known = {os.path.abspath(image["file_name"]) for image in images}
    rest = [i for i in dataset if os.path.abspath(i["file_name"]) not in known]
    if must_overlap and len(rest) == len(dataset):
        examples = [i[0]["file_name"] if i else "none" for i in (dataset, images)]
        raise ValueError(
            f"exclude_images: expected images that both sets have, found none: {examples[0]} and "
            f"{examples[1]} are examples. If a folder was moved, set image_root of "
            f"load_pseudo_labels."
        )
    return rest


def mix(shares: Sequence[float] | None = None, seed: int = 0, **parts: Images) -> Images:
    """Combine several datasets into one, in which each has a given share.

    No image is left out. The images of a dataset that is too small for its share are repeated; the
    seed decides which of them are repeated once more than the others. Because the result is a list,
    sampling, epochs and exact resuming work as usual. A batch has these shares on average.

    For example, `mix(shares=[1, 4], labeled=a, rest=b)` has four images of b for each image of a.

    Args:
        shares: one number > 0 for each dataset, in their order, in any unit. Default: concatenate
            the datasets as they are.
        seed: for the choice of repeated images.
        parts: the datasets, under any names. They are keywords and not a list, because Detectron2
            turns a list in a LazyConfig into an OmegaConf list. Each image would then refer to all
            others, and sending it to another process would copy them all.

    Raises:
        ValueError: a dataset is a name and not its images, or is empty; the number of shares is not
            the number of datasets; or a share is not positive.
    """
    for name, part in parts.items():
        check_images(f"mix.{name}", part)
    sizes = {name: len(part) for name, part in parts.items()}
    if not parts or not all(sizes.values()):
        raise ValueError(f"mix: expected images in each set, found {sizes}")
    if shares is None:
        return [image for part in parts.values() for image in part]
    if len(shares) != len(parts) or min(shares) <= 0:
        raise ValueError(f"mix.shares: expected {len(parts)} numbers > 0, found {list(shares)}")
    # The dataset that is largest in relation to its share is used once.
    unit = max(n / s for n, s in zip(sizes.values(), shares, strict=True))
    mixed: Images = []
    for i, (part, s) in enumerate(zip(parts.values(), shares, strict=True)):
        times, more = divmod(round(unit * s), len(part))
        extra = random.Random(f"{seed}/{i}").sample(range(len(part)), more)
        mixed += list(part) * times + [part[k] for k in sorted(extra)]
    return mixed
