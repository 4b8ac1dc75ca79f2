"""A teacher that sees images of another size than its student."""

import copy

import pytest
import torch
from detectron2.structures import Instances

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, LD, Methods, RankMimic
from tests import toys, vitdet
from tests.pseudo import pictures


def large(size=(128, 128), factor=2, seed=0) -> dict:
    """An input whose teacher's view is `factor` times as large."""
    view = toys.image(size=size, seed=seed)
    height, width = size[0] // factor, size[1] // factor
    small = torch.nn.functional.interpolate(
        view["image"][None].float(), size=(height, width), mode="area"
    )
    return {**toys.image(size=(height, width)), "image": small[0], "teacher_image": view["image"]}


def see(teacher, inputs, padded_size=(64, 64), needs=("features",)):
    return teacher(inputs, input_format="BGR", padded_size=padded_size, needs=needs)


def test_it_sees_its_own_pixels_and_shows_maps_in_the_students_frame():
    model = toys.retinanet().eval()
    inputs = [large(), large(seed=1)]
    images = torch.stack([x["teacher_image"] for x in inputs])
    with torch.no_grad():
        maps = model.backbone((images - model.pixel_mean) / model.pixel_std)
    shown = see(Teacher(model, None, image_size=128), inputs)
    assert shown.padded_size == (64, 64)
    for level, stride in zip(("p3", "p4", "p5", "p6"), toys.STRIDES, strict=False):
        # At twice the size, a cell of the student's frame is the mean of two by two cells.
        expected = torch.nn.functional.avg_pool2d(maps[level], 2)
        assert shown.features[level].shape[-2:] == (64 // stride, 64 // stride)
        torch.testing.assert_close(shown.features[level], expected)
    assert shown.features["p7"].shape[-2:] == (1, 1)


def test_images_of_one_batch_have_their_own_scales():
    teacher = Teacher(toys.retinanet(), None, image_size=128)
    seen = []
    teacher.model.backbone.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape))
    shown = see(teacher, [large((128, 192)), toys.image(size=(32, 64))], (64, 96))
    # The second image is enlarged to 128 x 256; its scale of 4 does not enlarge the padding of all.
    assert seen == [(2, 3, 128, 256)]
    assert shown.features["p3"].shape == (2, 8, 8, 12)


def test_the_padding_scales_with_the_images():
    teacher = Teacher(toys.retinanet(), None, image_size=128)
    seen = []
    teacher.model.backbone.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape))
    see(teacher, [large()], (96, 64))
    assert seen == [(1, 3, 192, 128)]


def test_without_the_mapper_pixels_are_interpolated_and_this_is_said_once(caplog):
    teacher = Teacher(toys.retinanet(), None, image_size=(128, 160))
    seen = []
    teacher.model.backbone.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    for _ in range(2):
        see(teacher, [toys.image(size=(64, 64))])
    assert seen[0].shape == (1, 3, 128, 128)
    expected = torch.nn.functional.interpolate(
        toys.image()["image"][None].float(), size=(128, 128), mode="bilinear", antialias=True
    )
    model = teacher.model
    torch.testing.assert_close(seen[0], (expected - model.pixel_mean) / model.pixel_std)
    assert caplog.text.count("the student's are interpolated") == 1


def test_channels_of_its_own_pixels_are_flipped():
    model = toys.retinanet()
    bgr = large()
    rgb = {**bgr, "image": bgr["image"].flip(0), "teacher_image": bgr["teacher_image"].flip(0)}
    teacher = Teacher(model, None, image_size=128)
    expected = see(teacher, [bgr]).features["p3"]
    found = teacher([rgb], input_format="RGB", padded_size=(64, 64)).features["p3"]
    assert torch.equal(found, expected)


def test_own_pixels_without_a_size_are_refused():
    message = r"RetinaNet: expected a Teacher with image_size, .* found a Teacher without one"
    with pytest.raises(ValueError, match=message):
        see(Teacher(toys.retinanet(), None), [large()])


def test_detections_of_its_own_pixels_are_in_the_frame_of_the_file():
    model = pictures.detector()
    x = {**large(), "height": 300, "width": 400}
    (found,) = Teacher(model, None, image_size=128).detect([x], input_format="BGR")
    own = [{"image": x["teacher_image"], "height": 300, "width": 400}]
    with torch.no_grad():
        (expected,) = model(own)
    assert len(found["instances"]) > 0
    assert torch.equal(
        found["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor
    )


def test_boxes_of_interpolated_pixels_are_in_the_frame_of_the_input():
    x = {"image": toys.image(size=(64, 96))["image"]}
    teacher = Teacher(pictures.detector(), None, image_size=128)
    (found,) = teacher.detect([x], input_format="BGR")
    instances: Instances = found["instances"]
    assert instances.image_size == (64, 96)
    boxes = instances.pred_boxes.tensor
    assert len(boxes) and (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()


def distiller(teacher, methods, student=None):
    return Distiller(
        student=student or toys.retinanet(), teacher=teacher, methods=Methods(**methods)
    )


def test_a_feature_method_trains_with_it():
    torch.manual_seed(0)
    model = distiller(Teacher(toys.retinanet(), None, image_size=128), {"fgd": FGD()}).train()
    losses = model([large(), large((192, 128), seed=1)])
    sum(losses.values()).backward()
    assert torch.isfinite(losses["loss_distill_fgd"])
    assert model.student.backbone.fpn_output3.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", [RankMimic, LD])
def test_methods_on_predictions_are_refused_when_the_model_is_built(method):
    build = toys.retinanet if method is RankMimic else lambda: toys.point("GFL")
    teacher = Teacher(build(), None, image_size=128)
    message = r"methods\.one: expected methods that need only features.*Teacher\.image_size"
    with pytest.raises(ValueError, match=message):
        distiller(teacher, {"one": method()}, build())


def test_a_teacher_that_assigns_is_refused():
    fields = dict(
        student=toys.point("DDOD"),
        teacher=Teacher(toys.point("DDOD"), None, image_size=128),
        methods=Methods(fgd=FGD()),
    )
    with pytest.raises(ValueError, match=r"teacher_assigns: expected methods that need only feat"):
        Distiller(**fields, teacher_assigns=True)


@pytest.mark.slow
def test_a_compiled_teacher_sees_its_own_size():
    model = toys.retinanet()
    plain = Teacher(copy.deepcopy(model), None, image_size=128)
    compiled = Teacher(model, None, image_size=128, compile=True)
    expected, found = (see(t, [large()]).features["p3"] for t in (plain, compiled))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ViTDet


def test_a_square_teacher_sees_images_that_fit_as_before():
    model = vitdet.rcnn().eval()
    inputs = toys.batch(size=(64, 48))
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image(inputs).tensor)
    shown = see(Teacher(model, None), inputs, (64, 64))
    assert all(torch.equal(shown.features[k], expected[k]) for k in expected)


def test_a_square_teacher_sees_all_of_a_larger_image():
    model = vitdet.rcnn().eval()
    x = toys.image(size=(128, 96))
    smaller = torch.nn.functional.interpolate(
        x["image"][None].float(), size=(64, 48), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        maps = model.backbone(model.preprocess_image([{"image": smaller[0]}]).tensor)
    shown = see(Teacher(model, None), [x], (128, 96))
    for level, rows, columns in (("p2", 32, 24), ("p3", 16, 12), ("p4", 8, 6)):
        expected = torch.nn.functional.interpolate(
            maps[level], scale_factor=2, mode="bilinear", align_corners=False
        )
        assert shown.features[level].shape[-2:] == (rows, columns)
        torch.testing.assert_close(shown.features[level], expected[..., :rows, :columns])


def test_a_square_teacher_shows_no_predictions_of_a_larger_image():
    teacher = Teacher(vitdet.rcnn(), None)
    needs = ("features", "logits", "boxes")
    assert see(teacher, toys.batch(), needs=needs).logits
    with pytest.raises(ValueError, match=r"only features.*the square of its backbone"):
        see(teacher, toys.batch(size=(96, 64)), (96, 64), needs)


def test_a_square_teacher_detects_in_all_of_a_larger_image():
    model = vitdet.rcnn().eval()
    image = toys.image(size=(128, 128))["image"]
    smaller = torch.nn.functional.interpolate(
        image[None].float(), size=(64, 64), mode="bilinear", antialias=True
    )[0]
    frame = {"height": 128, "width": 128}
    (found,) = Teacher(model, None).detect([{"image": image, **frame}], input_format="BGR")
    with torch.no_grad():
        (expected,) = model([{"image": smaller, **frame}])
    boxes, expected_boxes = (x["instances"].pred_boxes.tensor for x in (found, expected))
    assert len(boxes) > 0 and torch.equal(boxes, expected_boxes)


def test_a_square_student_refuses_a_larger_image():
    model = Distiller(student=vitdet.rcnn())
    assert model.train()(toys.batch())
    for mode in (True, False):
        with pytest.raises(ValueError, match="expected at most 64 x 64 pixels, the square of this"):
            model.train(mode)(toys.batch(size=(64, 96)))


def test_a_square_teacher_teaches_a_student_of_larger_images():
    torch.manual_seed(0)
    teacher = Teacher(vitdet.rcnn(), None)
    model = distiller(teacher, {"fgd": FGD()}, toys.rcnn()).train()
    losses = model(toys.batch(size=(96, 128)))
    assert torch.isfinite(losses["loss_distill_fgd"]) and losses["loss_distill_fgd"] > 0
