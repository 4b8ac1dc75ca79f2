"""Test partial labels in the losses of every detector.

Partial labels have ignored regions, classes that were not searched for, or weights of boxes.
"""

import copy

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead, Res5ROIHeads
from detectron2.structures import BitMasks, Boxes, Keypoints, pairwise_ioa
from torch import nn

from d2kd import Distiller, Targets, Teacher
from d2kd.methods import FGD, PGD, Methods, Mimic
from d2kd.partial_labels import mask_partial_labels
from d2kd.readers import get_reader
from tests import toys

DENSE = {
    "RetinaNet": toys.retinanet,
    "FCOS": toys.fcos,
    **{name: lambda name=name: toys.point(name) for name in ("ATSS", "GFL", "AutoAssign")},
    "DDOD": lambda: toys.point("DDOD", assigner="atss"),
}
POINTS = [name for name in DENSE if name != "RetinaNet"]
BOX = [4.0, 4.0, 20.0, 20.0]  # class 0
REGION = [36.0, 32.0, 64.0, 60.0]


def inputs(**second) -> list[dict]:
    """Two images with one box of class 0 each; the labels of the second are partial."""
    batch = [toys.image([BOX], seed=0), toys.image([BOX], seed=1)]
    weights = second.pop("gt_weights", None)
    if weights is not None:
        batch[1]["instances"].gt_weights = torch.tensor(weights)
    batch[1].update(second)
    return batch


def gradients(detector: nn.Module, batch: list[dict]) -> list[torch.Tensor]:
    """Gradients of the losses with respect to class logits, (N, R, K), boxes and quality."""
    detector = copy.deepcopy(detector).train()
    reader = get_reader(detector)
    targets = Targets.from_inputs(batch, "cpu", reader.num_classes)
    with reader.capture({"logits"}) as seen, mask_partial_labels(detector, targets):
        losses = detector(batch)
    found = [maps for maps in (seen.logits, seen.deltas, seen.quality) if maps]
    maps = [x for level in found for x in level.values()]
    grads = torch.autograd.grad(sum(losses.values()), maps, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(maps, grads, strict=True)]
    flat, start = [], 0
    for level in found:
        part = dict(zip(level, grads[start : start + len(level)], strict=True))
        start += len(level)
        dims = next(iter(part.values())).shape[1]
        flat.append(reader.flatten(part, dims))
    return flat


def centers(detector: nn.Module, batch: list[dict]) -> torch.Tensor:
    reader = get_reader(detector)
    images = detector.preprocess_image(batch).tensor
    return reader.run(images, {"logits", "boxes"}).centers.detach()


def detector(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = DENSE[name]()
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.3)
    return model


# ---- regions to ignore


@pytest.mark.parametrize("name", POINTS)
def test_points_in_a_region_have_no_gradient_and_all_others_the_same(name):
    model = detector(name)
    plain = gradients(model, inputs())
    found = gradients(model, inputs(ignore_boxes=[REGION]))
    x, y = centers(model, inputs()).T
    inside = (x >= REGION[0]) & (x < REGION[2]) & (y >= REGION[1]) & (y < REGION[3])
    assert inside.sum() > 5
    assert plain[0][1, inside].abs().sum() > 0
    assert not found[0][1, inside].any()
    torch.testing.assert_close(found[0][0], plain[0][0])
    torch.testing.assert_close(found[0][1, ~inside], plain[0][1, ~inside])


def test_anchors_mostly_in_a_region_have_no_gradient_and_all_others_the_same():
    model = detector("RetinaNet")
    plain = gradients(model, inputs())
    found = gradients(model, inputs(ignore_boxes=[REGION]))
    reader = get_reader(model)
    images = model.preprocess_image(inputs()).tensor
    anchors = reader.run(images, {"logits", "boxes"}).anchors
    share = pairwise_ioa(Boxes(torch.tensor([REGION])), Boxes(anchors))[0]
    assert 0 < (share >= 0.5).sum() < len(share)
    assert plain[0][1, share >= 0.5].abs().sum() > 0
    assert not found[0][1, share >= 0.5].any()
    torch.testing.assert_close(found[0][1, share < 0.5], plain[0][1, share < 0.5])


@pytest.mark.parametrize("name", DENSE)
def test_positives_in_a_region_keep_their_gradient(name):
    model = detector(name)
    batch = inputs(ignore_boxes=[[-999.0, -999.0, 999.0, 999.0]])
    targets = Targets.from_inputs(batch, "cpu", 3)
    reader = get_reader(model)
    seen = reader.run(model.preprocess_image(batch).tensor, {"logits", "boxes"})
    positive = reader.assign(seen, targets)[1] >= 0
    assert positive.any()
    plain, found = gradients(model, inputs()), gradients(model, batch)
    torch.testing.assert_close(found[0][1, positive], plain[0][1, positive])
    assert plain[0][1, ~positive].abs().sum() > 0 and not found[0][1, ~positive].any()
    for a, b in zip(found[1:], plain[1:], strict=True):
        torch.testing.assert_close(a[1, positive], b[1, positive])


# ---- classes that an image was not searched for


@pytest.mark.parametrize("name", DENSE)
def test_classes_not_searched_for_have_no_gradient_and_the_others_the_same(name):
    model = detector(name)
    plain, found = gradients(model, inputs()), gradients(model, inputs(annotated_classes=[0, 2]))
    assert plain[0][1, :, 1].abs().sum() > 0
    assert not found[0][1, :, 1].any()
    torch.testing.assert_close(found[0][1, :, [0, 2]], plain[0][1, :, [0, 2]])
    torch.testing.assert_close(found[0][0], plain[0][0])


@pytest.mark.parametrize("name", DENSE)
def test_an_image_searched_for_no_class_has_no_gradient(name):
    batch = [toys.image([BOX], seed=0), toys.image([], seed=1)]
    plain = gradients(detector(name), batch)
    batch[1]["annotated_classes"] = []
    found = gradients(detector(name), batch)
    assert plain[0][1].abs().sum() > 0
    # AutoAssign multiplies scores by an objectness, whose gradient is then as small as the scores.
    assert max(x[1].abs().max() for x in found) <= 1e-9 * plain[0][1].abs().max()
    torch.testing.assert_close(found[0][0], plain[0][0])


# ---- boxes that count less


@pytest.mark.parametrize("name", DENSE)
def test_the_gradient_of_a_box_is_scaled_by_its_weight(name):
    model = detector(name)
    plain, found = gradients(model, inputs()), gradients(model, inputs(gt_weights=[0.25]))
    targets = Targets.from_inputs(inputs(), "cpu", 3)
    reader = get_reader(model)
    seen = reader.run(model.preprocess_image(inputs()).tensor, {"logits", "boxes"})
    positive = reader.assign(seen, targets)[1] >= 0
    assert plain[1][1, positive].abs().sum() > 0
    for a, b in zip(found, plain, strict=True):
        if name == "DDOD" and a is not found[0]:
            continue  # DDOD has different positives for boxes and for classes
        torch.testing.assert_close(a[1, positive], 0.25 * b[1, positive])
        if name != "DDOD":
            torch.testing.assert_close(a[1, ~positive], b[1, ~positive])
        torch.testing.assert_close(a[0], b[0])


# ---- proposals and regions


def rcnn_gradients(build, batch: list[dict]) -> dict[str, torch.Tensor]:
    """Gradients of the losses of a two-stage detector.

    They are with respect to the objectness and deltas of each level, "rpn" and "anchors", and to
    the class scores and deltas of each stage, "roi" and "boxes". "logits" is the objectness itself.
    """
    torch.manual_seed(0)
    model = build().train()
    kept: dict[str, torch.Tensor] = {}

    def keep_levels(_module, _args, out):
        for name, maps in zip(("rpn", "anchors"), out, strict=True):
            kept.update({f"{name}{i}": x for i, x in enumerate(maps)})

    model.proposal_generator.rpn_head.register_forward_hook(keep_levels)
    stages = model.roi_heads.box_predictor
    stages = stages if isinstance(stages, nn.ModuleList) else [stages]
    for k, stage in enumerate(stages):
        stage.register_forward_hook(
            lambda _m, _a, out, k=k: kept.update({f"roi{k}": out[0], f"boxes{k}": out[1]})
        )
    targets = Targets.from_inputs(batch, "cpu", 3)
    sampled = []
    for stage in stages:
        original = stage.losses
        stage.losses = lambda predictions, proposals, original=original: (
            sampled.append(proposals) or original(predictions, proposals)
        )
    with mask_partial_labels(model, targets):
        torch.manual_seed(1)  # the same proposals are sampled
        losses = model(batch)
    for x in kept.values():
        x.retain_grad()
    sum(losses.values()).backward()
    logits = {name: x.detach() for name, x in kept.items() if name.startswith("rpn")}
    return {name: x.grad for name, x in kept.items()} | {"sampled": sampled, "logits": logits}


def wide(batch: list[dict]) -> list[dict]:
    for x in batch:
        x["image"] = torch.randint(
            0, 256, (3, 128, 128), generator=torch.Generator().manual_seed(2)
        ).to(torch.uint8)
        x["instances"]._image_size = (128, 128)
        x.update(height=128, width=128)
    return batch


@pytest.mark.parametrize("build", [toys.rcnn, toys.cascade], ids=["Faster", "Cascade"])
def test_proposals_in_a_region_have_no_gradient(build):
    region = [30.0, 0.0, 128.0, 128.0]
    plain = rcnn_gradients(build, wide(inputs()))
    found = rcnn_gradients(build, wide(inputs(ignore_boxes=[region])))
    stages = [k for k in plain if k.startswith("roi")]
    assert len(stages) == (3 if build is toys.cascade else 1)
    changed = 0
    for k, stage in enumerate(stages):
        proposals = found["sampled"][k]
        first = len(proposals[0])
        torch.testing.assert_close(found[stage][:first], plain[stage][:first])
        p = proposals[1]
        share = pairwise_ioa(Boxes(torch.tensor([region])), p.proposal_boxes)[0]
        ignored = (share >= 0.5) & (p.gt_classes == 3)
        grad = found[stage][first:]
        assert not grad[ignored].any()
        assert grad[~ignored].abs().sum() > 0
        changed += int(ignored.sum())
    assert changed
    objects = sum(int((g[1] != 0).sum()) for n, g in plain.items() if n.startswith("rpn"))
    left = sum(int((g[1] != 0).sum()) for n, g in found.items() if n.startswith("rpn"))
    assert 0 < left < objects


@pytest.mark.parametrize("build", [toys.rcnn, toys.cascade], ids=["Faster", "Cascade"])
def test_an_image_searched_for_no_class_has_no_gradient_in_a_two_stage_detector(build):
    batch = [toys.image([BOX], seed=0), toys.image([], seed=1, size=(64, 64))]
    batch[1]["annotated_classes"] = []
    found = rcnn_gradients(build, wide(batch))
    for name, grad in found.items():
        if name.startswith("rpn"):
            assert grad[0].abs().sum() > 0 or grad.shape[-1] < 8
            assert not grad[1].any()
        elif name.startswith("roi"):
            first = len(found["sampled"][int(name[3:])][0])
            assert grad[:first].abs().sum() > 0
            assert grad[first:].abs().max() < 1e-7


def test_weights_scale_the_boxes_of_a_two_stage_detector():
    plain = rcnn_gradients(toys.rcnn, wide(inputs()))
    found = rcnn_gradients(toys.rcnn, wide(inputs(gt_weights=[0.25])))
    first = len(found["sampled"][0][0])
    positive = found["sampled"][0][1].gt_classes < 3
    assert positive.any()
    factor = torch.where(positive, 0.25, 1.0)[:, None]
    for name in ("roi0", "boxes0"):
        assert plain[name][first:][positive].abs().sum() > 0
        torch.testing.assert_close(found[name][first:], factor * plain[name][first:])
        torch.testing.assert_close(found[name][:first], plain[name][:first])


def test_weights_scale_the_proposal_network():
    plain = rcnn_gradients(toys.rcnn, wide(inputs()))
    found = rcnn_gradients(toys.rcnn, wide(inputs(gt_weights=[0.25])))
    logits, deltas = ([n for n in plain if n.startswith(key)] for key in ("rpn", "anchors"))
    # Only the objectness of positives is pushed up, and only positives have deltas.
    assert any((plain[n][1] < 0).any() for n in logits)
    assert any((plain[n][1] > 0).any() for n in logits)
    assert any(plain[n][1].any() for n in deltas)
    for name in logits + deltas:
        factor = torch.where(plain[name][1] < 0, 0.25, 1.0) if name in logits else 0.25
        torch.testing.assert_close(found[name][1], factor * plain[name][1])
        torch.testing.assert_close(found[name][0], plain[name][0])


def test_likely_objects_are_no_negatives_of_the_proposals_if_a_class_is_unknown():
    plain = rcnn_gradients(toys.rcnn, wide(inputs()))
    found = rcnn_gradients(toys.rcnn, wide(inputs(annotated_classes=[0, 2])))
    left_out = kept = 0
    for name, logits in found["logits"].items():
        before, after = plain[name], found[name]
        unknown = (before[1] > 0) & (logits[1] > 0)  # the objectness of negatives is pushed down
        assert not after[1][unknown].any()
        torch.testing.assert_close(after[1][~unknown], before[1][~unknown])
        torch.testing.assert_close(after[0], before[0])
        left_out += int(unknown.sum())
        kept += int((after[1] > 0).sum())
    assert left_out and kept


@pytest.mark.parametrize("build", [toys.rcnn, toys.cascade], ids=["Faster", "Cascade"])
def test_positive_proposals_in_a_region_keep_their_gradient(build):
    plain = rcnn_gradients(build, wide(inputs()))
    found = rcnn_gradients(build, wide(inputs(ignore_boxes=[[-999.0, -999.0, 999.0, 999.0]])))
    for k, proposals in enumerate(found["sampled"]):
        first, positive = len(proposals[0]), proposals[1].gt_classes < 3
        assert positive.any()
        for name in (f"roi{k}", f"boxes{k}"):
            before, after = plain[name][first:], found[name][first:]
            assert before[positive].abs().sum() > 0
            torch.testing.assert_close(after[positive], before[positive])
            assert not after[~positive].any()


# ---- boxes without masks or keypoints


def with_masks(build) -> nn.Module:
    model, other = build(), toys.rcnn(mask=True).roi_heads
    for field in ("mask_on", "mask_in_features", "mask_pooler", "mask_head"):
        setattr(model.roi_heads, field, getattr(other, field))
    return model


def pooler(size: int) -> ROIPooler:
    return ROIPooler(size, scales=[1 / 4], sampling_ratio=2, pooler_type="ROIAlignV2")


def with_keypoints() -> nn.Module:
    model = toys.rcnn()
    model.roi_heads.keypoint_on = True
    model.roi_heads.keypoint_in_features = ["p2"]
    model.roi_heads.keypoint_pooler = pooler(7)
    model.roi_heads.keypoint_head = KRCNNConvDeconvUpsampleHead(
        ShapeSpec(channels=8, height=7, width=7), num_keypoints=2, conv_dims=[8]
    )
    return model


def on_one_level() -> nn.Module:
    """A Mask R-CNN like Detectron2's C4, whose mask head uses the features of the box head."""
    model = toys.rcnn(mask=True)
    old = model.roi_heads
    old.box_predictor.cls_score = nn.Linear(8, 4)
    old.box_predictor.bbox_pred = nn.Linear(8, 12)
    model.roi_heads = Res5ROIHeads(
        in_features=["p2"],
        pooler=pooler(7),
        res5=nn.Conv2d(8, 8, 1),
        box_predictor=old.box_predictor,
        mask_head=old.mask_head,
        num_classes=3,
        batch_size_per_image=64,
        positive_fraction=0.25,
        proposal_matcher=old.proposal_matcher,
    )
    return model


HEADS = {
    "Mask": (with_masks, toys.rcnn),
    "Cascade Mask": (with_masks, toys.cascade),
    "Mask C4": (on_one_level,),
    "Keypoint": (with_keypoints,),
}


@pytest.fixture(params=HEADS)
def model(request) -> nn.Module:
    build, *of = HEADS[request.param]
    torch.manual_seed(0)
    made = build(*of).train()
    if hasattr(made.roi_heads, "mask_head"):
        nn.init.normal_(made.roi_heads.mask_head.predictor.weight)  # so that masks differ
    return made


def with_fields(batch: list[dict], *which: int) -> list[dict]:
    """Give the boxes of these images masks and keypoints."""
    for i in which:
        truth = batch[i]["instances"]
        masks = torch.zeros(len(truth), *truth.image_size, dtype=torch.bool)
        masks[:, 6 : 14 - 4 * i, 8:18] = True
        truth.gt_masks = BitMasks(masks)
        points = torch.tensor([[8.0, 9.0 + i, 2.0], [15.0, 12.0, 2.0]])
        truth.gt_keypoints = Keypoints(points.expand(len(truth), 2, 3))
    return batch


def instance_head(model: nn.Module) -> tuple[nn.Module, str]:
    kind = "keypoint" if hasattr(model.roi_heads, "keypoint_head") else "mask"
    return getattr(model.roi_heads, f"{kind}_head"), f"loss_{kind}"


def distilled(model: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)  # the same proposals are sampled
    return Distiller(student=model).train()(batch)


def test_images_without_masks_are_left_out_of_the_mask_loss(model):
    head, name = instance_head(model)
    given = []
    handle = head.register_forward_pre_hook(lambda _m, args: given.append(args))
    whole = distilled(model, with_fields(wide(inputs()), 0, 1))
    handle.remove()
    ((features, instances),) = given
    assert all(len(x) for x in instances)
    expected = head(features[: len(instances[0])], [instances[0], instances[1][:0]])[name]
    found = distilled(model, with_fields(wide(inputs()), 0))
    assert found[name] > 0 and abs(found[name] - whole[name]) > 1e-3
    torch.testing.assert_close(found.pop(name), expected)
    assert all(torch.equal(x, whole[k]) for k, x in found.items())


@pytest.mark.filterwarnings("ignore:(Mean of empty|invalid value):RuntimeWarning")  # Detectron2's
def test_without_any_masks_every_parameter_has_a_gradient(model):
    head, name = instance_head(model)
    losses = distilled(model, wide(inputs()))
    assert losses[name] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any(p.grad.any() for p in head.parameters())


def test_with_all_masks_the_losses_equal_detectron2s(model):
    batch = wide([toys.image([BOX], seed=0), toys.image([], seed=1)])
    with_fields(batch, 0)  # Detectron2 needs no masks for an image without boxes either
    torch.manual_seed(1)
    expected = model(batch)
    found = distilled(model, batch)
    assert found.keys() == expected.keys()
    assert all(torch.equal(x, expected[k]) for k, x in found.items())
    assert "_forward_mask" not in vars(model.roi_heads)
    assert "forward" not in vars(instance_head(model)[0])


# ---- the context manager and its users


def test_complete_labels_change_nothing_and_the_losses_are_restored():
    model = toys.retinanet()
    batch = inputs(ignore_boxes=[REGION])
    with mask_partial_labels(model, Targets.from_inputs(batch, "cpu", 3)):
        assert "losses" in vars(model)
    assert "losses" not in vars(model)
    with mask_partial_labels(model, Targets.from_inputs(inputs(), "cpu", 3)):
        assert "losses" not in vars(model)


def test_an_unknown_detector_is_an_error():
    targets = Targets.from_inputs(inputs(ignore_boxes=[REGION]), "cpu", 3)
    with (
        pytest.raises(TypeError, match=r"cannot ignore regions or classes .*found Linear"),
        mask_partial_labels(nn.Linear(1, 1), targets),
    ):
        pass


@pytest.mark.parametrize("methods", [{}, {"m": Mimic()}], ids=["alone", "distilled"])
def test_the_distiller_masks_partial_labels(methods):
    torch.manual_seed(0)
    student = detector("FCOS")
    teacher = Teacher(toys.retinanet(), None) if methods else None
    model = Distiller(student=student, teacher=teacher, methods=Methods(**methods))
    batch = [toys.image([], seed=0), toys.image([], seed=1)]
    before = model(batch)["loss_fcos_cls"]
    for x in batch:
        x["annotated_classes"] = []
    losses = model(batch)
    assert 0 <= losses["loss_fcos_cls"] < 1e-6 * before
    if methods:
        assert losses["loss_distill_m"] > 0  # the teacher's maps need no labels


@pytest.mark.parametrize("method", [lambda: FGD(), lambda: PGD(on="neck")], ids=["FGD", "PGD"])
def test_unknown_regions_are_no_background_for_a_method(method, storage):
    model = Distiller(
        student=toys.retinanet(),
        teacher=Teacher(toys.retinanet(), None),
        methods=Methods(m=method()),
    )

    def terms(**fields):
        batch = [toys.image([], seed=0)]
        batch[0].update(fields)
        model(batch)
        latest = {k: v[0] for k, v in storage.latest().items() if "/m/" in k}
        storage._iter += 20  # go to the next step that is recorded
        return {k.split("/")[-1]: v for k, v in latest.items()}

    known = terms()
    half = terms(ignore_boxes=[[0.0, 0.0, 64.0, 32.0]])
    unknown = terms(annotated_classes=[])
    assert known["background"] > half["background"] > 0
    assert unknown["background"] == 0
    assert unknown["attention"] == known["attention"] > 0


def test_targets_collect_regions_classes_and_weights():
    batch = inputs(ignore_boxes=[REGION, BOX], annotated_classes=[0, 2], gt_weights=[0.5])
    targets = Targets.from_inputs(batch, "cpu", 3)
    assert not targets.complete and Targets.from_inputs(inputs(), "cpu").complete
    assert targets.ignored.tolist() == [[[0.0] * 4] * 2, [REGION, BOX]]
    assert targets.annotated.tolist() == [[True] * 3, [True, False, True]]
    assert targets.weights.tolist() == [[1.0], [0.5]]
    points = torch.tensor([[5.0, 5.0], [36.0, 32.0], [64.0, 32.0], [30.0, 30.0]])
    assert targets.known(points).tolist() == [[True] * 4, [False, False, True, True]]


# ---- a user's own override of a method that is replaced for a step


@pytest.mark.parametrize("name", ["RetinaNet", "ATSS"])
def test_the_users_own_losses_survive_and_are_called(name):
    model = detector(name).train()
    calls = []

    def own(*args):
        calls.append(len(args))
        return type(model).losses(model, *args)

    model.losses = own
    for _ in range(2):  # the second step shows whether it is still there
        batch = inputs(annotated_classes=[0, 2])
        with mask_partial_labels(model, Targets.from_inputs(batch, "cpu", 3)):
            assert model.losses is not own
            model(batch)
    assert model.losses is own and len(calls) == 2


def test_the_users_own_mask_head_survives():
    model = toys.rcnn(mask=True)
    own = model.roi_heads._forward_mask
    model.roi_heads._forward_mask = own
    with mask_partial_labels(model, Targets.from_inputs(inputs(), "cpu", 3)):
        assert model.roi_heads._forward_mask is not own
    assert model.roi_heads._forward_mask is own


def test_without_an_override_nothing_stays_behind():
    model = detector("RetinaNet")
    with (
        pytest.raises(ZeroDivisionError),
        mask_partial_labels(model, Targets.from_inputs(inputs(annotated_classes=[0]), "cpu", 3)),
    ):
        raise ZeroDivisionError
    assert "losses" not in vars(model)


# ---- boxes of classes that were not searched for


def test_a_box_of_a_class_that_was_not_searched_for_is_refused():
    batch = inputs(annotated_classes=[1, 2], file_name="street.png")
    with pytest.raises(
        ValueError, match=r"street.png: expected boxes .*\[1, 2\].*found boxes of the classes \[0\]"
    ):
        Targets.from_inputs(batch, "cpu", 3)
    assert Targets.from_inputs(inputs(annotated_classes=[0]), "cpu", 3).annotated[1].tolist() == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("classes", [[0, 3], [-1, 0]])
def test_annotated_classes_that_the_student_does_not_have_are_refused(classes):
    with pytest.raises(ValueError, match=r"annotated_classes from 0 to 2, .*found \[(3|-1)\]"):
        Targets.from_inputs(inputs(annotated_classes=classes), "cpu", 3)
