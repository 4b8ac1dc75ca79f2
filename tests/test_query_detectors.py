"""Detectors with queries, such as DETR: as student, as teacher, as label teacher."""

import copy

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import SemanticSegmentor
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from torch import nn

from d2kd import Distiller, Targets, Teacher
from d2kd.data import PartialMapper
from d2kd.data.manifest import Image
from d2kd.methods import FGD, MGD, PKD, CrossKD, Methods, Mimic
from d2kd.partial_labels import check_partial_labels, mask_partial_labels
from d2kd.pseudo.teachers import LabelTeacher
from d2kd.readers import get_reader
from tests import toys
from tests.queries import QueryDetector
from tests.waits import Waits

BOX = [4.0, 4.0, 28.0, 28.0]


def show(teacher, inputs):
    size = tuple(inputs[0]["image"].shape[-2:])
    return teacher(inputs, input_format="BGR", padded_size=size).features


# ---- the reader


def test_levels_are_those_after_the_neck():
    model = QueryDetector(channels=16)
    assert {k: (s.channels, s.stride) for k, s in get_reader(model).shapes.items()} == {
        "p4": (16, 16),
        "p5": (16, 32),
        "p6": (16, 64),
    }


def test_reading_a_detector_changes_nothing_in_it():
    model = QueryDetector().train()
    model.neck.norm.eval()
    before = copy.deepcopy(model.state_dict())
    get_reader(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training and model.backbone.training and not model.neck.norm.training


def test_maps_of_a_training_step_are_those_after_the_neck():
    model, reader = QueryDetector(), get_reader(QueryDetector())
    seen = []
    model.neck.register_forward_hook(lambda _m, _a, output: seen.append(output))
    with EventStorage(), get_reader(model).capture({"features"}) as knowledge:
        model(toys.batch())
    assert list(knowledge.features) == ["p4", "p5", "p6"] == list(reader.shapes)
    assert all(x is y for x, y in zip(knowledge.features.values(), seen[-1], strict=True))
    assert len(model.neck._forward_hooks) == 1  # the test's own


def test_maps_without_a_neck_are_the_backbones():
    model = QueryDetector(neck=False).eval()
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image(toys.batch()).tensor)
    found = show(Teacher(model, None), toys.batch())
    assert list(found) == ["res3", "res4", "res5"]
    assert all(torch.equal(found[level], expected[level]) for level in found)


@pytest.mark.parametrize("returns", ["ImageList", "Tensor", "list", "tuple"])
def test_a_teacher_takes_what_preprocess_image_returns(returns):
    model = QueryDetector(returns=returns).eval()
    with torch.no_grad():
        pixels = torch.stack([(x["image"] - 120.0) / 60.0 for x in toys.batch()])
        expected = model.neck(model.backbone(pixels))
    found = show(Teacher(model, None), toys.batch())
    for x, y in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("field", ["normalizer", "pixel_mean"])
def test_a_teacher_without_preprocess_image_is_normalized(field, monkeypatch):
    model = QueryDetector().eval()
    expected = show(Teacher(copy.deepcopy(model), None), toys.batch())
    monkeypatch.delattr(QueryDetector, "preprocess_image")
    if field == "pixel_mean":
        del model.normalizer
        model.pixel_mean, model.pixel_std = torch.tensor(120.0), torch.tensor(60.0)
    found = show(Teacher(model, None), toys.batch())
    assert all(torch.equal(found[level], expected[level]) for level in expected)


def test_a_teacher_that_normalizes_in_a_way_of_its_own_is_named(monkeypatch):
    model = QueryDetector()
    model.preprocess_image = lambda inputs: {"images": inputs}
    with pytest.raises(TypeError, match=r"QueryDetector.preprocess_image: expected.*found dict"):
        show(Teacher(model, None), toys.batch())
    monkeypatch.delattr(QueryDetector, "preprocess_image")
    del model.preprocess_image, model.normalizer
    with pytest.raises(TypeError, match=r"QueryDetector: expected preprocess_image, normalizer"):
        show(Teacher(model, None), toys.batch())


def test_two_maps_of_one_stride_are_named():
    model = QueryDetector()
    model.neck.extra.stride = (1, 1)
    with pytest.raises(TypeError, match=r"Neck: expected maps of different strides.*stride 32"):
        get_reader(model)


# ---- student and teacher

PAIRS = [
    (QueryDetector, lambda: QueryDetector(width=8, channels=24)),
    (QueryDetector, toys.retinanet),
    (toys.retinanet, QueryDetector),
    (toys.rcnn, lambda: QueryDetector(neck=False)),
]


@pytest.mark.parametrize("student, teacher", PAIRS)
@pytest.mark.parametrize("kind", [Mimic, PKD, FGD, MGD])
def test_feature_methods(student, teacher, kind):
    methods = Methods(it=kind())
    model = Distiller(student=student(), teacher=Teacher(teacher(), None), methods=methods).train()
    with EventStorage():
        losses = model(toys.batch())
        alone = {k for k in losses if not k.startswith("loss_distill")}
        assert alone == set(model.student(toys.batch()))
    losses["loss_distill_it"].backward()
    gradients = [p.grad for p in model.student.backbone.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_methods_on_heads_are_refused(role):
    detectors = {"student": toys.point("GFL"), "teacher": toys.point("GFL"), role: QueryDetector()}
    with pytest.raises(ValueError, match=rf"CrossKD.*{role}.*QueryDetector"):
        Distiller(
            student=detectors["student"],
            teacher=Teacher(detectors["teacher"], None),
            methods=Methods(kd=CrossKD(block=1)),
        )


def test_a_student_learns():
    torch.manual_seed(0)
    model = QueryDetector(num_queries=4)
    distiller = Distiller(
        student=model, teacher=Teacher(toys.retinanet(), None), methods=Methods(pkd=PKD())
    ).train()
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=3e-3)
    for step in range(30):
        with EventStorage():
            losses = distiller(toys.batch())
        if not step:
            first = {k: v.item() for k, v in losses.items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    for name in ("loss_class", "loss_bbox", "loss_distill_pkd"):
        assert losses[name] < 0.7 * first[name], name


def test_other_numbers_of_classes_are_refused():
    teacher = Teacher(QueryDetector(num_classes=5), None)
    with pytest.raises(ValueError, match=r"expected the same number of classes, found 3 and 5"):
        Distiller(student=QueryDetector(), teacher=teacher, methods=Methods(pkd=PKD()))


def test_a_query_detector_labels_images():
    model = QueryDetector(num_queries=5).eval()
    teacher = LabelTeacher(model, None, ["a", "b", "c"], score_floor=0.0, min_size_test=64)
    image = Image(file_name="x.png", image_id=0, height=128, width=128)
    (found,) = teacher([image], [toys.image()["image"]])
    assert len(found.scores) == 5 * 3  # it has no more, although 300 are asked for
    assert model.test_topk_per_image == 15
    with torch.no_grad():
        expected = model([{**toys.image(), "height": 128, "width": 128}])[0]["instances"]
    boxes = expected.pred_boxes.tensor.clamp(0, 128)
    torch.testing.assert_close(torch.as_tensor(found.boxes), boxes)
    assert found.classes.tolist() == expected.pred_classes.tolist()


# ---- incomplete labels


def gradients(model, inputs):
    """The gradients of all losses with respect to logits and boxes of each layer, by class.

    Returns:
        for each layer (the encoder last), (N, Q, K) and (N, Q, 4), and the matched queries (N, Q).
    """
    layers, matched = [], []
    predict, match = model.predict, model.criterion.matcher.forward

    def recorded_predict(states):
        outputs = predict(states)
        for x in outputs.values():
            x.retain_grad()
        layers.append(outputs)
        return outputs

    def recorded_match(outputs, targets):
        indices = match(outputs, targets)
        rows = torch.zeros(outputs["pred_logits"].shape[:2], dtype=torch.bool)
        for row, (queries, _) in zip(rows, indices, strict=True):
            row[queries] = True
        matched.append((outputs["pred_logits"], rows))
        return indices

    model.predict, model.criterion.matcher.forward = recorded_predict, recorded_match
    targets = Targets.from_inputs(inputs, "cpu", 3)
    with mask_partial_labels(model, targets):
        sum(model(inputs).values()).backward()
    model.predict, model.criterion.matcher.forward = predict, match
    assert "get_loss" not in vars(model.criterion)
    of_layer = [next(m for x, m in matched if x is y["pred_logits"]) for y in layers]
    return [
        (y["pred_logits"].grad, y["pred_boxes"].grad, y["pred_boxes"].detach(), m)
        for y, m in zip(layers, of_layer, strict=True)
    ]


@pytest.fixture(params=[False, True], ids=["sigmoid", "softmax"])
def model(request):
    torch.manual_seed(3)
    return QueryDetector(softmax=request.param, two_stage=True, num_queries=8).train()


def test_complete_labels_change_nothing(model):
    inputs = [toys.image([BOX], classes=[0])]
    expected = {k: v.item() for k, v in model(inputs).items()}
    with mask_partial_labels(model, Targets.from_inputs(inputs, "cpu", 3)):
        assert {k: v.item() for k, v in model(inputs).items()} == expected


def test_classes_that_were_not_annotated_get_no_gradient():
    model = QueryDetector(two_stage=True).train()
    inputs = [{**toys.image([BOX], classes=[0]), "annotated_classes": [0, 1]}]
    for logits, _, _, _ in gradients(model, inputs):
        assert not logits[..., 2].any()
        assert logits[..., 0].any() and logits[..., 1].any()


def test_in_a_softmax_no_object_includes_classes_that_were_not_annotated():
    model = QueryDetector(softmax=True).train()
    inputs = [{**toys.image([BOX], classes=[0]), "annotated_classes": [0, 1]}]
    outputs, predict = [], model.predict
    model.predict = lambda states: outputs.append(predict(states)) or outputs[-1]
    with mask_partial_labels(model, Targets.from_inputs(inputs, "cpu", 3)):
        found = model(inputs)["loss_class"]
    ((queries, _),) = model.criterion.matcher(outputs[-1], model.prepare_targets(inputs))
    losses = []
    for i, logits in enumerate(outputs[-1]["pred_logits"][0]):
        p = logits.softmax(0)
        losses.append(-torch.log(p[0] if i in queries else p[2] + p[3]))
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_an_image_without_labels_teaches_nothing(model):
    inputs = [toys.image([BOX], classes=[0]), {**toys.image([], seed=1), "annotated_classes": []}]
    for logits, boxes, _, _ in gradients(model, inputs):
        assert logits[0].any() and not logits[1].any() and not boxes[1].any()


def test_queries_in_a_region_to_ignore_are_no_background(model):
    inputs = [{**toys.image([BOX], classes=[0]), "ignore_boxes": [[0.0, 0.0, 64.0, 64.0]]}]
    for logits, boxes, _, matched in gradients(model, inputs):
        assert logits[matched].any(-1).all() and boxes[matched].any()
        assert not logits[~matched].any()


def test_queries_outside_a_region_are_background(model):
    region = torch.tensor([20.0, 0.0, 64.0, 64.0])
    inputs = [{**toys.image([BOX], classes=[0]), "ignore_boxes": region[None]}]
    ignored_some = kept_some = False
    torch.nn.init.normal_(model.bbox_embed.weight, std=1.0)  # boxes in different places
    for logits, _, boxes, matched in gradients(model, inputs):
        for gradient, box, is_matched in zip(logits[0], boxes[0] * 64, matched[0], strict=True):
            left, top = (box[:2] - box[2:] / 2).tolist()
            right, bottom = (box[:2] + box[2:] / 2).tolist()
            width = max(min(right, 64) - max(left, 20), 0)
            inside = width * max(min(bottom, 64) - max(top, 0), 0)
            ignored = inside >= 0.5 * (right - left) * (bottom - top) and not is_matched
            assert bool(gradient.any()) != ignored
            ignored_some |= bool(ignored)
            kept_some |= not ignored and not is_matched
    assert ignored_some and kept_some


def test_a_weight_multiplies_the_gradient_of_its_box(model):
    inputs = [toys.image([BOX, [30.0, 30.0, 60.0, 60.0]], classes=[0, 1])]
    weighted = copy.deepcopy(inputs)
    weighted[0]["instances"].gt_weights = torch.tensor([1.0, 0.25])
    expected, found = gradients(copy.deepcopy(model), inputs), gradients(model, weighted)
    for (logits, boxes, _, matched), (w_logits, w_boxes, _, _) in zip(expected, found, strict=True):
        torch.testing.assert_close(logits[~matched], w_logits[~matched])
        pairs = (logits, w_logits), (boxes, w_boxes)
        for whole, part in ((x[matched], y[matched]) for x, y in pairs):
            ratios = (part.abs().sum(-1) / whole.abs().sum(-1)).sort().values
            torch.testing.assert_close(ratios, torch.tensor([0.25, 1.0]))


@pytest.mark.parametrize("box, unknown", [(2, 0), (0, 2)])
def test_an_encoder_that_knows_objects_only_keeps_its_positives(box, unknown):
    # A background cell may be an object of a class that was not annotated. The label of "object"
    # is 0, also where all boxes are of class 0.
    model = QueryDetector(two_stage=True, binary_encoder=True).train()
    annotated = [k for k in range(3) if k != unknown]
    inputs = [{**toys.image([BOX], classes=[box]), "annotated_classes": annotated}]
    *decoder, (logits, _, _, matched) = gradients(model, inputs)
    assert logits[matched].any() and not logits[~matched].any()
    assert all(not x[..., unknown].any() and x[..., box].any() for x, _, _, _ in decoder)


@pytest.mark.parametrize("in_place", [False, True])
def test_an_encoder_learns_no_background_from_an_image_without_boxes(in_place):
    """detrex writes the labels of "object" into the dicts that the decoder's losses had."""
    model = QueryDetector(two_stage=True, binary_encoder=True).train()
    if in_place:
        forward = model.criterion.forward

        def replace_labels(outputs, targets):
            layer = outputs.pop("enc_outputs")
            losses = forward(outputs, targets)
            for x in targets:
                x["labels"] = torch.zeros_like(x["labels"])
            return losses | model.criterion._layer(layer, targets, 1, "_enc")

        model.criterion.forward = replace_labels
    inputs = [{**toys.image([BOX], classes=[0]), "annotated_classes": [0]}]
    inputs.append({**toys.image([], seed=1), "annotated_classes": [0, 1]})
    logits, _, _, matched = gradients(model, inputs)[-1]
    assert logits[matched].any() and not logits[~matched].any()


def test_an_encoder_with_classes_learns_background_of_the_annotated_ones():
    model = QueryDetector(two_stage=True).train()
    inputs = [{**toys.image([BOX], classes=[0]), "annotated_classes": [0]}]
    logits, _, _, matched = gradients(model, inputs)[-1]
    assert logits[..., 0][~matched].all() and not logits[..., 1:].any()


def test_denoising_queries_of_a_box_have_its_weight():
    """DINO gives the criterion several queries for each box, and queries that match none."""
    inputs = [toys.image([BOX, BOX], classes=[0, 1])]
    inputs[0]["instances"].gt_weights = torch.tensor([0.5, 1.0])
    targets = Targets.from_inputs(inputs, "cpu", 3)
    model, outputs = (
        QueryDetector(),
        {
            "pred_logits": torch.zeros(1, 8, 3, requires_grad=True),
            "pred_boxes": torch.full((1, 8, 4), 0.4, requires_grad=True),
        },
    )
    truth = model.prepare_targets(inputs)
    # Two groups of two positives and two negatives.
    indices = [(torch.tensor([0, 1, 4, 5]), torch.tensor([0, 1, 0, 1]))]
    with mask_partial_labels(model, targets):
        losses = model.criterion.get_loss("class", outputs, truth, indices, 1)
        losses |= model.criterion.get_loss("boxes", outputs, truth, indices, 1)
    sum(losses.values()).backward()
    logits, boxes = (x.grad[0].abs().sum(-1) for x in outputs.values())
    torch.testing.assert_close(logits[[0, 4]], logits[[1, 5]] / 2)
    torch.testing.assert_close(boxes[[0, 4]], boxes[[1, 5]] / 2)
    assert logits[[2, 3, 6, 7]].all() and not boxes[[2, 3, 6, 7]].any()


def test_corners_in_pixels_are_compared_with_regions():
    """Sparse R-CNN predicts corners in pixels, and its targets have the sizes of the images."""
    targets = Targets.from_inputs(
        [{**toys.image([BOX], (64, 128)), "ignore_boxes": [[64.0, 0.0, 128.0, 64.0]]}], "cpu", 3
    )
    center = torch.tensor([[16 / 128, 16 / 64, 24 / 128, 24 / 64]])
    truth = [{"labels": torch.tensor([0]), "boxes": center, "image_size_xyxy": None}]
    outputs = {
        "pred_logits": torch.zeros(1, 3, 3),
        "pred_boxes": torch.tensor([[BOX, [60.0, 10.0, 90.0, 40.0], [40.0, 10.0, 70.0, 40.0]]]),
    }
    model, seen = QueryDetector(), []
    model.criterion.get_loss = lambda loss, outputs, *rest: seen.append(outputs["pred_logits"])
    with mask_partial_labels(model, targets):
        indices = [(torch.tensor([0]), torch.tensor([0]))]
        model.criterion.get_loss("class", outputs, truth, indices, 1)
    assert seen[0][0, :, 0].tolist() == [0.0, -20.0, 0.0]


def test_the_distiller_masks_them():
    model = Distiller(student=QueryDetector())
    inputs = [{**toys.image([], seed=1), "annotated_classes": []}]
    assert all(x < 1e-5 for x in model.train()(inputs).values())


def absolute(model):
    prepare = model.prepare_targets
    model.prepare_targets = lambda inputs: [{**x, "boxes": 2 * x["boxes"]} for x in prepare(inputs)]


def without_get_loss(model):
    model.criterion = nn.Identity()


def more_logits(model):
    model.criterion.num_classes = 1


@pytest.mark.parametrize(
    "change, message",
    [
        (absolute, r"SetCriterion: expected boxes as centers.*found boxes in another form"),
        (without_get_loss, r"cannot ignore regions.*get_loss\(.*found QueryDetector\."),
        (more_logits, r"SetCriterion: expected logits of 1 classes.*found 3"),
    ],
)
def test_a_criterion_of_another_form_is_refused(change, message):
    model = QueryDetector().train()
    change(model)
    inputs = [{**toys.image([BOX], classes=[0]), "ignore_boxes": [[0.0, 0.0, 9.0, 9.0]]}]
    with pytest.raises(TypeError, match=message):
        Distiller(student=model).train()(inputs)


def test_masks_do_not_make_the_host_wait(model):
    """The form of the boxes is looked at once, with the first box that there is."""
    box = {**toys.image([BOX], classes=[0]), "ignore_boxes": [[0.0, 0.0, 9.0, 9.0]]}
    none = {**toys.image([], seed=1), "ignore_boxes": [[0.0, 0.0, 9.0, 9.0]]}
    waits = []
    # The waits of our masks only, not of the criterion.
    model.criterion.get_loss = lambda loss, outputs, targets, indices, num_boxes: {}
    for x in (none, box, box):
        inputs = [{**x, "annotated_classes": [0, 1]}]
        truth, targets = model.prepare_targets(inputs), Targets.from_inputs(inputs, "cpu", 3)
        outputs = model.predict(torch.zeros(1, 4, 16))
        count = torch.arange(len(truth[0]["labels"]))
        with mask_partial_labels(model, targets), Waits() as found:
            model.criterion.get_loss("class", outputs, truth, [(count, count)], 1)
        waits.append(len(found.found))
    assert waits[0] == waits[2] == 0 < waits[1]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: Distiller(student=x)])
def test_incomplete_labels_are_refused_before_the_first_step(wrap):
    partial, complete = (
        OmegaConf.create({"dataloader": {"train": {"mapper": L(kind)(is_train=True)}}})
        for kind in (PartialMapper, DatasetMapper)
    )
    model = QueryDetector()
    check_partial_labels(partial, wrap(model))
    without_get_loss(model)
    check_partial_labels(complete, wrap(model))
    with pytest.raises(TypeError, match=r"cannot ignore regions.*found QueryDetector"):
        check_partial_labels(partial, wrap(model))


def test_a_criterion_whose_get_loss_takes_other_arguments_is_refused():
    """As Align-DETR's does."""
    model = QueryDetector()
    model.criterion.get_loss = lambda outputs, targets, num_boxes, layer_spec: {}
    mapper = L(PartialMapper)(is_train=True)
    partial = OmegaConf.create({"dataloader": {"train": {"mapper": mapper}}})
    message = r"found QueryDetector with SetCriterion.get_loss\(outputs, targets, num_boxes"
    with pytest.raises(TypeError, match=message):
        check_partial_labels(partial, model)


# ---- any module trains without methods


class Counter(nn.Module):
    """A module that has nothing in common with a detector but its inputs and outputs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batched_inputs):
        return {"loss": self.scale * len(batched_inputs)}


def without_boxes(x: dict) -> dict:
    x["instances"].remove("gt_boxes")
    return x


def segmentor():
    backbone = toys.pyramid()

    class Head(nn.Module):
        ignore_value = 255

        def forward(self, features, targets):
            return None, {"loss_sem_seg": features["p3"].mean() + 0.0 * targets.sum()}

    return SemanticSegmentor(
        backbone=backbone,
        sem_seg_head=Head(),
        pixel_mean=[120.0] * 3,
        pixel_std=[60.0] * 3,
    )


@pytest.mark.parametrize(
    "student, inputs",
    [
        (Counter, toys.batch),
        (segmentor, lambda: [{"image": torch.zeros(3, 64, 64), "sem_seg": torch.ones(64, 64)}]),
        (QueryDetector, toys.batch),
        # Mask2Former's mapper for semantic segmentation gives masks and no boxes.
        (Counter, lambda: [without_boxes(x) for x in toys.batch()]),
    ],
)
def test_any_module_trains_without_methods(student, inputs):
    model = student().train()
    expected = copy.deepcopy(model)(inputs())
    found = Distiller(student=model).train()(inputs())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_methods_without_boxes_are_a_plain_error():
    inputs = [without_boxes(x) for x in toys.batch()]
    with pytest.raises(ValueError, match=r"expected gt_boxes, .* found only gt_classes"):
        Targets.from_inputs(inputs, "cpu", 3)


def test_a_module_that_cannot_be_read_has_no_methods():
    with pytest.raises(TypeError, match=r"expected one of DenseDetector.*found a Counter"):
        Distiller(
            student=Counter(), teacher=Teacher(toys.retinanet(), None), methods=Methods(p=PKD())
        )


def test_shapes_of_a_backbone_are_its_own():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = toys.pyramid(), nn.Identity()

    reader = get_reader(Bare())
    assert reader.shapes["p3"] == ShapeSpec(channels=8, stride=8)
    assert reader.num_classes == 0 and reader.provides == {"features"}
