import collections
import inspect
import os
import pickle

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from d2kd.data.manifest import Image
from d2kd.data.partial import (
    PartialMapper,
    exclude_images,
    load_class_subset,
    load_unlabeled,
    mix,
    random_subset,
    register_class_subset,
)
from d2kd.data.views import relabel
from d2kd.pseudo.coco import load_pseudo_labels, write_labels
from d2kd.pseudo.fuse import Labels


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.zeros((40, 60, 3), np.uint8))
    return path


def record(file, *annotations, **fields) -> dict:
    made = [
        {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0, **more}
        for box, more in annotations
    ]
    return dict(file_name=str(file), image_id=1, height=40, width=60, annotations=made, **fields)


def mapper(*augmentations, **fields) -> PartialMapper:
    return PartialMapper(
        is_train=True, augmentations=list(augmentations), image_format="BGR", **fields
    )


UNSURE = {"iscrowd": 1, "pseudo_ignore": 1}


def test_regions_to_ignore_move_with_the_image(file):
    crop = T.CropTransform(10, 0, 40, 40)
    out = mapper(T.HFlipTransform(60), crop)(
        record(file, ([0, 5, 20, 10], {}), ([5, 10, 40, 8], UNSURE), ([0, 0, 5, 5], UNSURE))
    )
    # After the flip, x is from 15 to 55. The crop subtracts 10 and clips at 40. The small region is
    # outside the crop.
    assert out["ignore_boxes"].tolist() == [[5.0, 10.0, 40.0, 18.0]]
    assert out["instances"].gt_boxes.tensor.tolist() == [[30.0, 5.0, 40.0, 15.0]]


def test_recompute_boxes_keeps_boxes_without_masks(file):
    reads = mapper(use_instance_mask=True, recompute_boxes=True)
    out = reads(record(file, ([0, 5, 20, 10], {})))["instances"]
    assert out.gt_boxes.tensor.tolist() == [[0, 5, 20, 15]] and not out.has("gt_masks")
    corners = [2.0, 6.0, 9.0, 6.0, 9.0, 12.0, 2.0, 12.0]
    out = reads(record(file, ([0, 5, 20, 10], {"segmentation": [corners]})))["instances"]
    assert out.gt_boxes.tensor.tolist() == [[2, 6, 9, 12]]


def test_crowds_are_ignored_if_set(file):
    crowd = record(file, ([5, 5, 20, 10], {"iscrowd": 1}))
    assert len(mapper()(crowd)["ignore_boxes"]) == 0
    assert mapper(ignore_crowds=True)(crowd)["ignore_boxes"].tolist() == [[5, 5, 25, 15]]


def test_weights_stay_with_their_boxes(file):
    out = mapper(T.CropTransform(30, 0, 30, 40))(
        record(file, ([0, 0, 9, 9], {"weight": 0.1}), ([35, 5, 9, 9], {"weight": 0.7}))
    )
    assert out["instances"].gt_weights.tolist() == [pytest.approx(0.7)]  # the other is outside
    assert not mapper()(record(file, ([0, 0, 9, 9], {})))["instances"].has("gt_weights")


def test_one_box_with_a_weight_gives_all_boxes_weights(file):
    out = mapper()(record(file, ([0, 0, 9, 9], {}), ([20, 5, 9, 9], {"weight": 0.7})))
    assert out["instances"].gt_weights.tolist() == [1.0, pytest.approx(0.7)]


@pytest.mark.parametrize("ignore_crowds", [False, True])
def test_crowds_of_true_labels_do_not_become_objects(file, ignore_crowds):
    mixed = record(file, ([5, 5, 20, 10], {"iscrowd": 1}), ([30, 5, 10, 10], {}))
    out = mapper(ignore_crowds=ignore_crowds)(mixed)
    assert out["instances"].gt_boxes.tensor.tolist() == [[30.0, 5.0, 40.0, 15.0]]


def test_all_other_output_equals_detectron2s_mapper(file):
    from detectron2.data import DatasetMapper

    box = record(file, ([3, 4, 20, 10], {}), ([1, 1, 5, 5], {}), annotated_classes=[1])
    fields = dict(is_train=True, augmentations=[T.RandomFlip(1.0)], image_format="BGR")
    ours, theirs = PartialMapper(**fields)(box), DatasetMapper(**fields)(box)
    assert set(ours) == {*theirs, "ignore_boxes"}
    assert torch.equal(ours["image"], theirs["image"])
    assert ours["annotated_classes"] == [1]
    for name in ("gt_boxes", "gt_classes"):
        a, b = (getattr(x["instances"], name) for x in (ours, theirs))
        assert torch.equal(getattr(a, "tensor", a), getattr(b, "tensor", b))


def test_an_image_without_annotations_has_empty_instances(file):
    assert len(mapper()(record(file))["instances"]) == 0


def test_signature_lists_all_fields():
    fields = inspect.signature(PartialMapper).parameters
    assert {"is_train", "augmentations", "image_format", "ignore_crowds"} <= set(fields)
    assert not any(p.kind is p.VAR_KEYWORD for p in fields.values())


# ---- labels from teachers


@pytest.fixture
def labels(tmp_path):
    image = tmp_path / "images" / "a.png"
    image.parent.mkdir()
    cv2.imwrite(str(image), np.zeros((40, 60, 3), np.uint8))
    found = Labels(
        boxes=np.array([[1, 2, 20, 30], [5, 5, 15, 15]], np.float32),
        scores=np.array([0.9, 0.4], np.float32),
        classes=np.array([1, 0]),
        votes=np.array([1, 1]),
        teachers=np.ones((2, 1), bool),
        ignore=np.array([False, True]),
        weights=np.array([0.5, 1.0], np.float32),
    )
    path = tmp_path / "out" / "labels.json"
    write_labels(
        path,
        [Image(7, str(image), 40, 60)],
        {7: found},
        ["cat", "dog", "cow"],
        dict(teachers={"big": {}}, settings={}, manifest={}),
        annotated={7: np.array([True, True, False])},
    )
    return path


def test_labels_are_loaded_with_weights_regions_and_annotated_classes(labels):
    (image,) = load_pseudo_labels(labels)
    assert image["annotated_classes"] == [0, 1]
    box, region = image["annotations"]
    assert (box["category_id"], region["category_id"]) == (1, 0)
    assert box["weight"] == 0.5 and region["pseudo_ignore"] == 1
    out = mapper()(image)
    assert out["instances"].gt_boxes.tensor.tolist() == [[1.0, 2.0, 20.0, 30.0]]
    assert out["instances"].gt_weights.tolist() == [0.5]
    assert out["ignore_boxes"].tolist() == [[5.0, 5.0, 15.0, 15.0]]


def test_load_unlabeled_removes_labels():
    DatasetCatalog.register("_labeled", lambda: [{"image_id": 1, "annotations": [{"bbox": []}]}])
    try:
        (image,) = load_unlabeled("_labeled")
    finally:
        DatasetCatalog.remove("_labeled")
    assert image == {"image_id": 1, "annotations": [], "annotated_classes": []}


# ---- some classes


@pytest.fixture
def farm():
    classes = [[0, 2, 1], [1], []]
    images = [
        {"image_id": i, "annotations": [{"category_id": c, "bbox": [c] * 4} for c in found]}
        for i, found in enumerate(classes)
    ]
    DatasetCatalog.register("_farm", lambda: images)
    MetadataCatalog.get("_farm").set(thing_classes=["ant", "bee", "cat"])
    yield images
    for name in ("_farm", "_cats"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)


def test_class_subset_numbers_its_classes(farm):
    found = load_class_subset("_farm", ["cat", "ant"])
    assert [[(a["category_id"], a["bbox"][0]) for a in x["annotations"]] for x in found] == [
        [(1, 0), (0, 2)],
        [],
        [],
    ]
    assert ids(found) == [0, 1, 2]
    assert [a["category_id"] for a in farm[0]["annotations"]] == [0, 2, 1]  # not changed
    with pytest.raises(ValueError, match=r"'_farm', \['ant', 'bee', 'cat'\], found \['dog'\]"):
        load_class_subset("_farm", ["cat", "dog"])


def test_class_subset_is_registered_once(farm):
    for classes in (["cat"], ["ant", "bee"]):  # the name is taken the second time
        register_class_subset("_cats", "_farm", classes)
    assert MetadataCatalog.get("_cats").thing_classes == ["cat"]
    assert DatasetCatalog.get("_cats") == load_class_subset("_farm", ["cat"])


# ---- shares and mixtures


def images(n: int, first: int = 0) -> list[dict]:
    return [
        {"image_id": first + i, "file_name": f"{first + i}.png", "annotations": [i]}
        for i in range(n)
    ]


def ids(dataset) -> list[int]:
    return [x["image_id"] for x in dataset]


def test_random_subset_depends_on_ids_and_seed_only():
    chosen = ids(random_subset(images(50), 0.2, seed=3))
    assert len(chosen) == 10
    assert set(ids(random_subset(images(50)[::-1], 0.2, seed=3))) == set(chosen)
    assert set(ids(random_subset(images(50), 0.2, seed=4))) != set(chosen)
    assert set(chosen) < set(ids(random_subset(images(50), 0.5, seed=3)))
    assert ids(random_subset(images(50), 1.0)) == ids(images(50))


def test_other_images_of_a_random_subset_can_stay_unlabeled():
    kept = random_subset(images(50), 0.2, rest="unlabeled")
    assert ids(kept) == ids(images(50))
    blank = [x for x in kept if x.get("annotated_classes") == []]
    assert len(blank) == 40 and not any(x["annotations"] for x in blank)
    assert sorted(x["image_id"] for x in kept if x not in blank) == sorted(
        ids(random_subset(images(50), 0.2))
    )


@pytest.mark.parametrize("bad", [dict(share=0.0), dict(share=1.5), dict(share=0.001)])
def test_impossible_shares_are_refused(bad):
    with pytest.raises(ValueError, match="share: expected"):
        random_subset(images(50), **bad)


def test_exclude_images_compares_files():
    assert ids(exclude_images(images(6), images(3, first=2))) == [0, 1, 5]
    # The id belongs to another image, and the path is absolute: only the file counts.
    others = [{"image_id": 0, "file_name": os.path.abspath("4.png"), "annotations": []}]
    assert ids(exclude_images(images(6), others)) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("others", [[], [{"image_id": 1, "file_name": "elsewhere/1.png"}]])
def test_datasets_without_a_common_image_are_refused(others):
    with pytest.raises(ValueError, match=r"images that both sets have, found none: 0\.png and"):
        exclude_images(images(3), others)
    assert ids(exclude_images(images(3), others, must_overlap=False)) == [0, 1, 2]


def test_mixture_has_its_shares_and_leaves_no_image_out():
    few, many = images(7), images(40, first=100)
    mixed = mix([1, 2], few=few, many=many)
    count = collections.Counter(ids(mixed))
    assert len(mixed) == 60
    assert all(count[i] == 1 for i in ids(many))
    assert sum(count[i] for i in ids(few)) == 20
    assert {count[i] for i in ids(few)} == {2, 3}
    assert ids(mix([1, 2], few=few, many=many)) == ids(mixed)
    assert ids(mix(few=few, many=many)) == [*ids(few), *ids(many)]


@pytest.mark.parametrize("bad", [[1], [1, 0], [1, -1]])
def test_impossible_mixtures_are_refused(bad):
    with pytest.raises(ValueError, match=r"mix\.shares: expected 2 numbers > 0"):
        mix(bad, a=images(2), b=images(3))
    with pytest.raises(ValueError, match=r"in each set, found {'a': 2, 'b': 0}"):
        mix(a=images(2), b=[])


def test_mixture_from_a_config_is_a_list_of_plain_dicts():
    node = L(mix)(
        a=L(images)(n=3), b=L(exclude_images)(dataset=L(images)(n=400), images=L(images)(n=2))
    )
    mixed = instantiate(node)
    assert type(mixed) is list and {type(image) for image in mixed} == {dict}
    assert len(pickle.dumps(mixed[0])) < 200


@pytest.mark.parametrize(
    "load, field",
    [
        (lambda name: random_subset(name, 0.5), "random_subset.dataset"),
        (lambda name: exclude_images(name, []), "exclude_images.dataset"),
        (lambda name: exclude_images([], name), "exclude_images.images"),
        (lambda name: mix(a=name), "mix.a"),
        (relabel, "relabel.images"),
    ],
)
def test_name_in_place_of_images_is_an_error_that_tells_how_to_load_it(load, field):
    message = rf"^{field}: expected a list of images, found .*\(names='demo_fog_val'\)\.$"
    with pytest.raises(ValueError, match=message):
        load("demo_fog_val")


@pytest.mark.parametrize("load", [load_unlabeled, lambda images: load_class_subset(images, ["a"])])
def test_images_in_place_of_a_name_are_an_error(load):
    with pytest.raises(ValueError, match=r"expected the name of a registered dataset, found a lis"):
        load([{}])
