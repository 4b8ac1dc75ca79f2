"""Readers of all detectors: captured maps, boxes, label assignment, taps, the rest of the head."""

import dataclasses

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.utils.events import EventStorage
from torch import nn

from d2kd import Targets
from d2kd.detectors import PointHead
from d2kd.readers import check_same_anchors, get_reader
from tests import toys

TOWERS = CLS, BOX = "cls_tower.1", "box_tower.1"


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("build", [toys.retinanet, toys.fcos], ids=["RetinaNet", "FCOS"])
def test_dense_detectors_provide_pyramid_and_logits(build):
    model = build().eval()
    reader = get_reader(model)
    images = torch.randn(2, 3, 64, 96)
    knowledge = reader.run(images, {"features", "logits"})
    features = model.backbone(images)
    logits = model.head([features[f] for f in model.head_in_features])[0]
    assert knowledge.padded_size == (64, 96)
    assert list(knowledge.logits) == ["p3", "p4", "p5", "p6", "p7"]
    for i, level in enumerate(knowledge.logits):
        assert torch.equal(knowledge.features[level], features[level])
        assert torch.equal(knowledge.logits[level], logits[i])


@pytest.mark.parametrize("mask", [False, True], ids=["Faster", "Mask"])
def test_two_stage_detectors_provide_their_pyramid(mask):
    reader = get_reader(toys.rcnn(mask=mask, num_classes=5).eval())
    assert reader.num_classes == 5 and "cls_tower.1" not in reader.provides
    assert [(k, v.stride) for k, v in reader.shapes.items()] == [
        (f"p{i}", 2**i) for i in range(2, 7)
    ]
    assert "p2" in reader.run(torch.randn(1, 3, 64, 64), {"features"}).features


@pytest.mark.parametrize("build", [toys.retinanet, toys.fcos], ids=["RetinaNet", "FCOS"])
def test_towers_are_the_first_block_after_its_activation(build):
    model = build().eval()
    images = torch.randn(2, 3, 64, 96)
    knowledge = get_reader(model).run(images, TOWERS)
    features = model.backbone(images)
    for level in model.head_in_features:
        for shown, tower in (
            (knowledge.taps[CLS], model.head.cls_subnet),
            (knowledge.taps[BOX], model.head.bbox_subnet),
        ):
            assert torch.equal(shown[level], tower[0](features[level]).relu())


def test_boxes_are_those_that_retinanet_decodes():
    model = toys.retinanet(test_score_thresh=0.0, test_nms_thresh=1.0).eval()
    torch.nn.init.normal_(model.head.bbox_pred.weight, std=0.3)
    images = torch.randn(1, 3, 64, 64)
    reader = get_reader(model)
    knowledge = reader.run(images, {"boxes"})
    scores = reader.flatten(knowledge.logits, 3).sigmoid()[0]
    features = [model.backbone(images)[f] for f in model.head_in_features]
    logits, deltas = (
        [x[0] for x in levels]
        for levels in model._transpose_dense_predictions(model.head(features), [3, 4])
    )
    listed = model.inference_single_image(
        model.anchor_generator(features), [x.sigmoid() for x in logits], deltas, (1000, 1000)
    )
    order = scores.flatten().sort(descending=True).indices[:10]
    expected = listed.pred_boxes.tensor[:10]
    torch.testing.assert_close(knowledge.boxes[0, order // 3], expected)


def test_boxes_of_fcos_are_distances_in_strides():
    model = toys.fcos().eval()
    knowledge = get_reader(model).run(torch.randn(1, 3, 64, 64), {"boxes"})
    ltrb = knowledge.deltas["p4"][0, :, 1, 2].relu() * 16  # cell (1, 2) of p4
    x, y = 2.5 * 16, 1.5 * 16
    expected = torch.stack([x - ltrb[0], y - ltrb[1], x + ltrb[2], y + ltrb[3]])
    row = 8 * 8 + 1 * 4 + 2
    torch.testing.assert_close(knowledge.boxes[0, row], expected)
    assert knowledge.centers[row].tolist() == [x, y]


def test_boxes_of_two_stage_detectors_are_the_proposals():
    model = toys.rcnn().eval()
    knowledge = get_reader(model).run(torch.randn(1, 3, 64, 64), {"boxes"})
    rpn = model.proposal_generator
    with torch.no_grad():
        anchors = rpn.anchor_generator(list(knowledge.features.values()))
        deltas = rpn.rpn_head([knowledge.features[f] for f in rpn.in_features])[1]
        expected = rpn._decode_proposals(
            anchors,
            [
                rpn_deltas.view(1, 3, 4, *rpn_deltas.shape[-2:])
                .permute(0, 3, 4, 1, 2)
                .flatten(1, 3)
                for rpn_deltas in deltas
            ],
        )
    torch.testing.assert_close(knowledge.boxes, torch.cat(expected, 1))


@pytest.mark.parametrize("build", [toys.retinanet, toys.fcos], ids=["RetinaNet", "FCOS"])
def test_assignment_is_the_detectors_own(build):
    model = build().eval()
    reader = get_reader(model)
    knowledge = reader.run(torch.randn(3, 3, 128, 128), {"boxes"})
    boxes = [[8.0, 8, 60, 50], [30, 20, 100, 110], [8, 8, 60, 50]], [], [[3.0, 3, 40, 30]]
    targets = toys.targets(*boxes, classes=[[0, 1, 2], [], [1]], size=(128, 128))
    matched = reader.assign(knowledge, targets)
    labels, matched_boxes = model.label_anchors(reader.anchors(knowledge), targets.instances())
    for i in range(3):
        positive = (labels[i] >= 0) & (labels[i] < 3)
        assert torch.equal(matched[i] >= 0, positive)
        index = matched[i][positive]
        assert torch.equal(targets.boxes[i][index], matched_boxes[i][positive])
        assert torch.equal(targets.classes[i][index], labels[i][positive])
    assert (matched >= 0).any() and (matched[1] == -1).all()


@pytest.mark.parametrize("build", [toys.retinanet, toys.fcos], ids=["RetinaNet", "FCOS"])
def test_assignment_of_a_training_step_is_the_one_that_its_losses_used(build, monkeypatch):
    calls, model = [], build().train()
    own = type(model).label_anchors
    monkeypatch.setattr(type(model), "label_anchors", lambda *args: calls.append(1) or own(*args))
    reader, inputs = get_reader(model), toys.batch()
    targets = Targets.from_inputs(inputs, "cpu", reader.num_classes)
    with EventStorage(), reader.capture({"boxes"}) as knowledge:
        model(inputs)
    knowledge = reader.finalize(knowledge, {"boxes"})
    matched = reader.assign(knowledge, targets)
    assert len(calls) == 1 and "label_anchors" not in vars(model)
    knowledge.anchor_labels = None
    assert torch.equal(reader.assign(knowledge, targets), matched)
    assert len(calls) == 2 and (matched >= 0).any()


POINTS = ["ATSS", "GFL", "DDOD", "AutoAssign"]


@pytest.mark.parametrize("name", POINTS)
def test_point_detectors_provide_everything(name):
    model = toys.point(name).eval()
    reader = get_reader(model)
    assert reader.provides == {
        *("features", "logits", "boxes"),
        *("cls_tower.1", "cls_tower.2", "box_tower.1", "box_tower.2"),
    }
    images = torch.randn(2, 3, 64, 96)
    knowledge = reader.run(images, reader.provides)
    output = model.head([knowledge.features[f] for f in model.head_in_features])
    for maps, expected in zip(
        (knowledge.logits, knowledge.deltas, knowledge.quality), output, strict=False
    ):
        assert all(torch.equal(a, b) for a, b in zip(maps.values(), expected, strict=True))
    assert bool(knowledge.quality) == (name != "GFL")
    locations = model.locations(list(knowledge.logits.values()))
    boxes = model.decode(locations, model.predictions(output).regression)
    assert torch.equal(knowledge.boxes, boxes) and torch.equal(knowledge.anchors, locations.anchors)
    p3 = knowledge.features["p3"]
    for shown, tower in (
        (knowledge.taps[CLS], model.head.cls_subnet),
        (knowledge.taps[BOX], model.head.bbox_subnet),
    ):
        assert torch.equal(shown["p3"], tower[1](tower[0](p3)).relu())
        assert shown["p3"].shape[1] == reader.taps[CLS].channels


@pytest.mark.parametrize("name", POINTS)
def test_assignment_of_point_detectors_is_that_of_their_losses(name):
    model = toys.point(name)
    calls = []
    match = "match" if name == "DDOD" else "assign"
    own = getattr(model, match)
    inputs = toys.batch(2, size=(64, 96))
    with get_reader(model).capture({"boxes"}) as knowledge:
        setattr(model, match, lambda *args: calls.append(own(*args)) or calls[-1])
        model(inputs)
    reader = get_reader(model)
    knowledge = reader.finalize(knowledge, {"boxes"})
    assigned = reader.assign(knowledge, Targets.from_inputs(inputs, "cpu"))
    assert assigned.shape == knowledge.boxes.shape[:2] and (assigned >= 0).any()
    if name == "AutoAssign":  # its losses have no positives
        assert ((assigned >= 0).sum(1) == 9).all()
    else:
        assert torch.equal(assigned, calls[0])


def test_assignment_leaves_out_the_padding_of_another_image():
    reader = get_reader(toys.point("ATSS"))
    boxes = [[50.0, 4, 64, 60], [30.0, 20, 64, 44], [40.0, 40, 63, 63]]
    targets = toys.targets(boxes)
    alone = reader.run(torch.zeros(1, 3, 64, 64), {"boxes"})
    padded = reader.run(torch.zeros(1, 3, 64, 160), {"boxes"})
    wide = reader.assign(padded, targets)[0]
    own = (padded.centers[:, 0] < 64) & (padded.centers[:, 1] < 64)
    assert (wide[~own] == -1).all() and (wide >= 0).any()
    # On coarse levels, the image itself has a cell with that center.
    assert torch.equal(wide[own], reader.assign(alone, targets)[0])


def test_ddod_assigns_by_the_boxes_of_any_detector():
    student = toys.point("DDOD")
    teacher = toys.retinanet(
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[8 * s] for s in toys.STRIDES], aspect_ratios=[1.0], strides=toys.STRIDES
        )
    )
    torch.nn.init.normal_(teacher.head.bbox_pred.weight, std=0.3)
    torch.nn.init.normal_(teacher.head.cls_score.weight, std=0.3)
    shown = get_reader(teacher).run(torch.randn(1, 3, 64, 64), {"logits", "boxes"})
    targets = toys.targets([[8.0, 8, 40, 40], [20.0, 10, 60, 50]])
    maps = list(shown.logits.values())
    locations = student.locations(maps)
    logits = torch.cat([x.flatten(2).mT for x in maps], 1)
    inside = torch.ones(1, len(locations.anchors), dtype=torch.bool)
    expected = student.match(locations, logits, shown.boxes, targets, inside, student.cls_alpha)
    assert (expected >= 0).any()
    assert torch.equal(get_reader(student).assign(shown, targets), expected)


def test_readers_know_the_padding_of_their_detectors():
    reader = get_reader(toys.point("ATSS"))
    assert reader.padding == 32 and get_reader(toys.point("AutoAssign")).padding == 0
    assert get_reader(toys.retinanet()).padding == get_reader(toys.fcos()).padding == 0


def test_assignment_without_any_box():
    reader = get_reader(toys.retinanet().eval())
    knowledge = reader.run(torch.randn(2, 3, 64, 64), {"boxes"})
    assert (reader.assign(knowledge, toys.targets([], [])) == -1).all()


def test_cells_beyond_the_crop_size_are_cut_off():
    model = toys.retinanet().eval()
    images = torch.randn(1, 3, 128, 160)
    needs = {"features", "logits", "boxes", *TOWERS}
    whole = get_reader(model).run(images, needs)
    cut = get_reader(model).run(images, needs, crop_size=(72, 96))
    assert cut.padded_size == (72, 96)
    for name in ("features", "logits", "deltas", *TOWERS):
        assert torch.equal(cut.maps(name)["p3"], whole.maps(name)["p3"][..., :9, :12])
    assert cut.boxes.shape[1] == cut.anchors.shape[0] == 9 * 12 + 5 * 6 + 3 * 3 + 2 * 2 + 1
    # Row 1, column 0 of p3. The cropped grid has 12 columns, the whole grid has 20.
    assert torch.equal(cut.boxes[0, 12], whole.boxes[0, 20])


def test_different_anchors_are_named():
    reader = get_reader(toys.retinanet())
    check_same_anchors(reader, get_reader(toys.retinanet()), "RM")
    # One anchor in a cell predicts for its center, however large it is.
    check_same_anchors(reader, get_reader(toys.fcos()), "RM")
    with pytest.raises(ValueError, match=r"RM: expected.*same offset of the anchors"):
        check_same_anchors(reader, get_reader(toys.point("ATSS")), "RM")
    two = DefaultAnchorGenerator(
        sizes=[[32, 48]] * 5, aspect_ratios=[1.0], strides=toys.STRIDES, offset=0.5
    )
    several = dataclasses.replace(reader, anchor_generator=two)
    with pytest.raises(ValueError, match=r"RM: expected.*same anchors in a cell"):
        check_same_anchors(reader, several, "RM")
    with pytest.raises(ValueError, match=r"RM: expected.*same strides of the head"):
        check_same_anchors(reader, get_reader(toys.rcnn()), "RM")


def test_captured_maps_are_those_that_the_detector_computed():
    model = toys.retinanet()
    with get_reader(model).capture({"features"}) as knowledge:
        sum(model(toys.batch()).values()).backward()
    assert knowledge.features["p3"].requires_grad and not knowledge.logits


def test_hooks_exist_inside_the_block_only():
    model = toys.retinanet()
    with get_reader(model).capture({"features", "logits", *TOWERS}):
        assert hooks(model) == 6
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), get_reader(model).capture({"features"}):
        raise RuntimeError
    assert hooks(model) == 0


def test_unknown_detector_is_named_with_the_fix():
    with pytest.raises(
        TypeError, match=r"expected one of DenseDetector.*found a Linear.*get_reader.register"
    ):
        get_reader(nn.Linear(1, 1))


# ---- towers at any block, and the rest of the head


def deep(build: str, **fields):
    """A detector with towers of three blocks."""
    if build == "GFL":
        head = dict(box_channels=68, quality=False)
        return toys.point("GFL", head=PointHead(**DEEP, norm="LN", **head), **fields)
    if build == "ATSS":
        return toys.point("ATSS", head=PointHead(**DEEP, norm="LN"), **fields)
    if build == "FCOS":
        model = toys.fcos()
        model.head = FCOSHead(**DEEP)
        return model
    # Its norms are lists with one norm for each level, of which each call takes the next one.
    model = toys.retinanet(head=RetinaNetHead(**DEEP, num_anchors=1, norm="BN"), **fields)
    for module in model.head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    return model


DEEP = dict(input_shape=[toys.ShapeSpec(channels=8)] * 5, num_classes=3, conv_dims=[8] * 3)


@pytest.mark.parametrize("build", ["RetinaNet", "FCOS", "ATSS", "GFL"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_tap_is_the_output_of_that_block(build, block):
    model = deep(build).eval()
    names = f"cls_tower.{block}", f"box_tower.{block}"
    knowledge = get_reader(model).run(torch.randn(2, 3, 64, 96), {"features", *names})
    for name, tower in zip(names, (model.head.cls_subnet, model.head.bbox_subnet), strict=True):
        assert list(knowledge.taps[name]) == model.head_in_features
        for level, shown in knowledge.taps[name].items():
            x, outputs = knowledge.features[level], []
            for layer in tower:
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    outputs.append(x)
            assert torch.equal(shown, outputs[block - 1])
    assert get_reader(model).taps[names[0]].channels == 8


@pytest.mark.parametrize("build", ["RetinaNet", "FCOS", "ATSS", "GFL"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_rest_of_the_head_on_its_own_maps_gives_its_own_outputs(build, block):
    model = deep(build).eval()
    reader = get_reader(model)
    needs = {"logits", "boxes", f"cls_tower.{block}", f"box_tower.{block}"}
    knowledge = reader.run(torch.randn(2, 3, 64, 96), needs)
    maps = [knowledge.taps[f"{name}.{block}"] for name in ("cls_tower", "box_tower")]
    again = knowledge.run_head_from(block, *maps, needs=("logits", "boxes"))
    for name in ("logits", "deltas", "quality"):
        assert list(again.maps(name)) == list(knowledge.maps(name))
        for level, x in knowledge.maps(name).items():
            assert torch.equal(again.maps(name)[level], x)
    assert torch.equal(again.boxes, knowledge.boxes) and hooks(model) == 0


def test_the_rest_of_the_head_depends_on_both_maps_and_trains_neither_its_weights():
    model = deep("ATSS").eval()
    reader = get_reader(model)
    maps = [
        {f"p{3 + i}": torch.rand(1, 8, 8 >> i, 8 >> i, requires_grad=True) for i in range(4)}
        for _ in range(2)
    ]
    for tower in maps:
        tower["p7"] = torch.rand(1, 8, 1, 1, requires_grad=True)
    cls_maps, box_maps = maps
    outputs = reader.run_head_from(2, cls_maps, box_maps)
    sum(x.square().sum() for x in outputs.logits.values()).backward()
    assert all(x.grad.any() for x in cls_maps.values())
    assert all(x.grad is None for x in box_maps.values())
    outputs = reader.run_head_from(2, cls_maps, box_maps)
    sum(x.square().sum() for x in (*outputs.deltas.values(), *outputs.quality.values())).backward()
    assert all(x.grad.any() for x in box_maps.values())
    # The weights were trainable before and are so again, but got no gradient.
    assert all(p.requires_grad and p.grad is None for p in model.head.parameters())
    # Only the last block and the predictors ran on the maps.
    expected = model.head.cls_score(model.head.cls_subnet[6:](cls_maps["p4"]))
    torch.testing.assert_close(outputs.logits["p4"], expected)


def test_names_that_a_detector_lacks_are_refused():
    reader = get_reader(toys.rcnn())
    with pytest.raises(ValueError, match=r"needs of GeneralizedRCNN: expected .*found cls_tower.1"):
        reader.run(torch.zeros(1, 3, 64, 64), {"features", "cls_tower.1"})
    assert reader.run(torch.zeros(1, 3, 64, 64), {"features"}).run_head_from is None
    with pytest.raises(ValueError, match=r"RetinaNet with cls_tower.2, box_tower.2, found cls_t"):
        get_reader(toys.retinanet()).run_head_from(2, {}, {})
    with pytest.raises(ValueError, match=r"GeneralizedRCNN with .*, found no towers"):
        reader.run_head_from(1, {}, {})


def test_hooks_of_the_rest_of_the_head_are_gone_after_an_error():
    model = deep("FCOS")
    maps = {level: torch.rand(1, 5, 4, 4) for level in model.head_in_features}  # 8 channels
    with pytest.raises(RuntimeError):
        get_reader(model).run_head_from(1, maps, maps)
    assert hooks(model) == 0 and all(p.requires_grad for p in model.parameters())
