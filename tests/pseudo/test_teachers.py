import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances, RotatedBoxes

from d2kd.checkpoint import Checkpointer
from d2kd.data.manifest import Image
from d2kd.pseudo.fingerprint import fingerprint
from d2kd.pseudo.label import _load
from d2kd.pseudo.teachers import LabelTeacher, class_names
from tests import toys, vitdet
from tests.pseudo import pictures

NAMES = ["ant", "bee", "cat"]
PIXELS = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(3)).byte()
IMAGE = Image(1, "a.png", 128, 192)


def teacher(model=None, weights=None, classes=NAMES, **fields):
    return LabelTeacher(model or pictures.detector(), weights, classes, **fields)


@pytest.mark.parametrize("kind", [toys.retinanet, toys.fcos, toys.rcnn, lambda: toys.point("ATSS")])
def test_detections_equal_the_detectors_in_pixels_of_the_file(kind):
    model = pictures.detector(kind)
    found = teacher(model, score_floor=0.3, max_detections=50)([IMAGE], [PIXELS])[0]
    with torch.no_grad():
        (output,) = model([{"image": PIXELS, "height": 128, "width": 192}])
    expected = output["instances"]
    expected = expected[expected.scores > 0.3]  # ATSS's own floor holds before quality
    assert 0 < len(found.scores) <= 50
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.boxes, expected.pred_boxes.tensor)
    np.testing.assert_array_equal(found.classes, expected.pred_classes)
    assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == tuple(
        map(np.dtype, ("f4", "f4", "i8"))
    )
    assert (found.boxes.max(0) > [0, 0, 96, 64]).all()  # beyond the resized image
    assert ((found.boxes >= 0) & (found.boxes <= [192, 128, 192, 128])).all()
    assert (np.diff(found.scores) <= 0).all()


def test_floor_and_count_override_the_detectors_own():
    model = pictures.detector(test_score_thresh=0.99, max_detections_per_image=1)
    many = teacher(model, score_floor=0.3)([IMAGE], [PIXELS])[0]
    fewer = teacher(model, score_floor=float(np.median(many.scores)))([IMAGE], [PIXELS])[0]
    few = teacher(model, score_floor=0.3, max_detections=3)([IMAGE], [PIXELS])[0]
    assert len(many.scores) > len(fewer.scores) > 3
    assert fewer.scores.min() > np.median(many.scores)
    np.testing.assert_array_equal(few.boxes, many.boxes[:3])


def test_cascade_and_masks():
    model = pictures.detector(lambda: toys.rcnn(mask=True))
    made = teacher(model, score_floor=0.25, max_detections=7)
    assert model.roi_heads.box_predictor.test_score_thresh == 0.25
    assert model.roi_heads.box_predictor.test_topk_per_image == 7
    with torch.no_grad():
        (output,) = model([{"image": PIXELS}])
    assert not output["instances"].has("pred_masks")  # masks are not computed
    assert len(made([IMAGE], [PIXELS])) == 1


def test_a_batch_finds_what_single_images_do():
    made = teacher()
    flipped = PIXELS.flip(2)
    both = made([IMAGE, IMAGE], [PIXELS, flipped])
    for one, pixels in zip(both, (PIXELS, flipped), strict=True):
        alone = made([IMAGE], [pixels])[0]
        np.testing.assert_allclose(one.scores, alone.scores, atol=1e-6)
        np.testing.assert_allclose(one.boxes, alone.boxes, atol=1e-3)


@pytest.mark.parametrize("kind", [toys.retinanet, toys.fcos, lambda: toys.point("GFL"), toys.rcnn])
def test_half_precision_finds_about_the_same(kind):
    full = teacher(pictures.detector(kind), score_floor=0.3)([IMAGE], [PIXELS])[0]
    half = teacher(pictures.detector(kind), score_floor=0.3, dtype="bfloat16")([IMAGE], [PIXELS])[0]
    assert half.scores.dtype == half.boxes.dtype == np.float32
    np.testing.assert_allclose(half.scores[:5], full.scores[:5], atol=0.03)
    assert not np.array_equal(half.scores[:5], full.scores[:5])


def test_weights_are_loaded_strictly_and_hashed(tmp_path):
    one, two = pictures.detector(), pictures.detector()
    torch.nn.init.normal_(two.head.bbox_pred.weight)
    Checkpointer(one, str(tmp_path)).save("one")
    Checkpointer(two, str(tmp_path)).save("two")
    loaded = teacher(pictures.detector(), str(tmp_path / "one.pth"))
    again = teacher(two, str(tmp_path / "one.pth"))
    other = teacher(pictures.detector(), str(tmp_path / "two.pth"))
    assert loaded.settings() == again.settings()
    assert len(loaded.settings()["weights"]) == 64
    assert loaded.settings()["weights"] != other.settings()["weights"]
    with pytest.raises(ValueError, match="does not fit this RetinaNet"):
        teacher(toys.retinanet(width=6), str(tmp_path / "one.pth"))


@pytest.mark.parametrize(
    "change",
    [
        dict(score_floor=0.1),
        dict(max_detections=100),
        dict(batch_size=4),
        dict(min_size_test=640),
        dict(max_size_test=1000),
        dict(dtype="bfloat16"),
        dict(input_format="RGB"),
        dict(model=pictures.detector(test_nms_thresh=0.4)),
        dict(model=pictures.detector(pixel_std=[1.0, 1.0, 1.0])),
    ],
)
def test_settings_contain_what_changes_predictions(change):
    assert teacher(**change).settings() != teacher().settings()


def test_settings_do_not_contain_what_does_not_change_predictions():
    other = teacher(classes=["x", "y", "z"], categories={"x": "dog", "y": None, "z": None})
    assert other.settings() == teacher().settings()
    assert other.categories["y"] is None


def test_fingerprint_covers_box_weights_and_anchors():
    printed = fingerprint(pictures.detector(toys.rcnn))
    assert fingerprint(pictures.detector(toys.rcnn)) == printed
    model = pictures.detector(toys.rcnn)
    model.proposal_generator.box2box_transform.weights = (2.0, 1.0, 1.0, 1.0)
    assert fingerprint(model) != printed
    model = pictures.detector(toys.rcnn)
    model.proposal_generator.anchor_generator.strides[0] = 3
    assert fingerprint(model) != printed


def test_inference_does_not_change_the_fingerprint():
    model = pictures.detector(toys.rcnn)
    before = fingerprint(model)
    with torch.no_grad():
        model([{"image": PIXELS}])
    assert fingerprint(model) == before


def test_classes_of_a_dataset():
    late = MetadataCatalog.get("toy_late")
    DatasetCatalog.register("toy_late", lambda: late.set(thing_classes=NAMES))
    DatasetCatalog.register("toy_nameless", list)
    try:
        assert teacher(classes="toy_late").classes == tuple(NAMES)
        with pytest.raises(ValueError, match="found none of 'toy_nameless'"):
            class_names("toy_nameless")
    finally:
        for name in ("toy_late", "toy_nameless"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


LAZY = """
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from tests import toys, vitdet

model = L(toys.retinanet)()
{dataloader}
"""
MAPPER = "dataloader = dict(test=dict(mapper=L(DatasetMapper)(is_train=False, augmentations={})))"
RESIZE = "[L(T.ResizeShortestEdge)(short_edge_length={}, max_size={})]"


def yacs(path):
    config = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST = 320, 500
    config.MODEL.FPN.OUT_CHANNELS, config.MODEL.RETINANET.NUM_CLASSES = 8, 3
    path.write_text(config.dump())
    return str(path)


def lazy(path, augmentations=None):
    dataloader = "" if augmentations is None else MAPPER.format(augmentations)
    path.write_text(LAZY.format(dataloader=dataloader))
    return str(path)


@pytest.mark.parametrize(
    ("model", "size", "shape"),
    [
        # The image has 48 x 64 pixels. Its shorter side becomes 320, the other 64 * 320 / 48 = 427.
        (lambda path: yacs(path / "a.yaml"), (320, 500), (320, 427)),
        (lambda path: lazy(path / "a.py", RESIZE.format(96, 120)), (96, 120), (90, 120)),
        (lambda path: lazy(path / "a.py", RESIZE.format([96], 200)), (96, 200), (96, 128)),
        (lambda path: lazy(path / "a.py", "[]"), (0, 1333), (48, 64)),
        (lambda path: lazy(path / "a.py", "[L(T.RandomFlip)()]"), (800, 1333), (800, 1067)),
        (lambda path: lazy(path / "a.py"), (800, 1333), (800, 1067)),
        (lambda path: L(toys.retinanet)(), (800, 1333), (800, 1067)),
        (lambda path: pictures.detector(), (800, 1333), (800, 1067)),
    ],
)
def test_images_have_the_test_size_of_the_teachers_config(model, size, shape, tmp_path):
    made = LabelTeacher(model(tmp_path), None, NAMES)
    assert (made.min_size_test, made.max_size_test) == size
    assert tuple(made.settings()[f"{x}_size_test"] for x in ("min", "max")) == size
    folder = pictures.folder(tmp_path / "images", 1, sizes=[(48, 64)])
    ((_, image, pixels),) = _load(iter([(0, Image(1, str(folder / "00.png"), 0, 0))]), made, 0)
    assert tuple(pixels.shape) == (3, *shape) and (image.height, image.width) == (48, 64)


@pytest.mark.parametrize("fields", [dict(min_size_test=64), {}])
def test_a_size_that_no_config_says_is_a_warning(fields, tmp_path, caplog):
    with caplog.at_level("WARNING", "d2kd.pseudo"):
        LabelTeacher(L(toys.retinanet)(), None, NAMES, **fields)
        LabelTeacher(lazy(tmp_path / "a.py", RESIZE.format(96, 120)), None, NAMES)
    said = [r for r in caplog.records if "does not say at which size" in r.getMessage()]
    assert len(said) == (not fields)


def test_the_channel_order_of_the_test_images_is_the_teachers(tmp_path):
    config = lazy(tmp_path / "a.py", RESIZE.format(96, 120))
    text = (tmp_path / "a.py").read_text()
    text += "dataloader['test']['mapper'].image_format = 'RGB'\n"
    (tmp_path / "a.py").write_text(text)
    assert LabelTeacher(config, None, NAMES).input_format == "RGB"


def test_given_test_size_overrides_the_config(tmp_path):
    config = lazy(tmp_path / "a.py", RESIZE.format(96, 120))
    made = LabelTeacher(config, None, NAMES, min_size_test=64)
    assert (made.min_size_test, made.max_size_test) == (64, 120)
    made = LabelTeacher(config, None, NAMES, min_size_test=0, max_size_test=99)
    assert (made.min_size_test, made.max_size_test) == (0, 99)
    with pytest.raises(ValueError, match="max_size_test: expected a whole number >= 96, found 95"):
        LabelTeacher(config, None, NAMES, max_size_test=95)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(classes=["ant", "bee"]), "the names of its 3 classes, found 2"),
        (dict(model=toys.rcnn(num_classes=4)), "the names of its 4 classes, found 3"),
        (dict(classes=["ant", "bee", "ant"]), "names that differ, found ant"),
        (dict(classes="toy_unknown"), "a dataset registered with Detectron2, found 'toy_unknown'"),
        (dict(score_floor=1.0), "score_floor: expected a number >= 0 and < 1, found 1.0"),
        (dict(score_floor=-0.1), "score_floor: expected a number >= 0 and < 1, found -0.1"),
        (dict(dtype="float64"), "dtype: expected bfloat16, float16 or None, found 'float64'"),
        (dict(batch_size=0), "batch_size: expected a whole number >= 1, found 0"),
        (dict(max_size_test=400), "max_size_test: expected a whole number >= 800, found 400"),
        (dict(input_format="GRB"), "expected 'BGR' or 'RGB', found 'GRB'"),
    ],
)
def test_wrong_arguments_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        teacher(**fields)


def test_boxes_that_are_not_finite_raise():
    model = pictures.detector()
    made = teacher(model)
    torch.nn.init.constant_(model.head.bbox_pred.bias, float("nan"))
    with pytest.raises(ValueError, match=r"finite boxes, found others in one of a\.png"):
        made([IMAGE], [PIXELS])


def test_divisibility_is_from_the_backbone():
    model = pictures.detector()
    assert teacher(model).divisibility == model.backbone.size_divisibility > 1


def test_the_test_size_fits_into_the_square_of_the_detector(tmp_path):
    made = teacher(vitdet.rcnn())
    assert (made.min_size_test, made.max_size_test) == (64, 64)
    folder = pictures.folder(tmp_path / "images", 1, sizes=[(96, 128)])
    ((_, _, pixels),) = _load(iter([(0, Image(1, str(folder / "00.png"), 0, 0))]), made, 0)
    assert tuple(pixels.shape) == (3, 48, 64)
    smaller = teacher(vitdet.rcnn(), min_size_test=32, max_size_test=48)
    assert (smaller.min_size_test, smaller.max_size_test) == (32, 48)


def test_an_image_larger_than_the_square_is_seen_as_a_whole():
    torch.manual_seed(0)
    model = vitdet.rcnn().eval()
    pixels = PIXELS.repeat(1, 2, 2)  # (3, 128, 192)
    smaller = torch.nn.functional.interpolate(
        pixels[None].float(), size=(43, 64), mode="bilinear", antialias=True
    )
    made = teacher(model, min_size_test=0, score_floor=0.1)
    (found,) = made([IMAGE], [pixels])
    with torch.no_grad():
        (output,) = model([{"image": smaller[0], "height": 128, "width": 192}])
    assert len(found.scores) > 0
    np.testing.assert_allclose(found.boxes, output["instances"].pred_boxes.tensor, atol=1e-4)
    assert found.boxes[:, 2].max() > 64


def test_rotated_boxes_of_a_detector_are_refused():
    found = Instances((64, 96), scores=torch.ones(1), pred_classes=torch.zeros(1))
    found.pred_boxes = RotatedBoxes(torch.tensor([[32.0, 32, 8, 8, 45]]))
    made = teacher()
    made.model.forward = lambda _inputs: [{"instances": found}]
    with pytest.raises(ValueError, match=r"upright boxes .* found boxes of 5 numbers in a\.png"):
        made([IMAGE], [PIXELS])
