"""Panels show what the losses compute: compared with values from the networks' own outputs."""

import functools

import numpy as np
import pytest
import torch
from detectron2.layers import cat

from d2kd import Distiller, FeatureTeacher, Teacher
from d2kd.matching import GroundTruth
from d2kd.methods import FGD, PFI, PGD, PKD, MCDropout, Methods, RankMimic
from d2kd.visualize import Networks, Picture, columns, draw
from tests import toys

BOX = (8.0, 8.0, 40.0, 40.0)


@pytest.fixture
def drawn(monkeypatch):
    """What the drawings get, by the name of the function that draws."""
    calls = {}
    for name in draw.__all__:
        if name.startswith("draw_"):
            monkeypatch.setattr(
                draw, name, lambda *args, name=name, **style: calls.setdefault(name, args)
            )
    return calls


def networks(build=toys.retinanet, teacher=None, **methods) -> Networks:
    torch.manual_seed(3)
    teacher = teacher or Teacher(build(width=8), None)
    model = Distiller(student=build(width=4), teacher=teacher, methods=Methods(**methods))
    return Networks.of(model.eval(), "BGR")


def picture(*boxes) -> Picture:
    image = toys.image(boxes=boxes, classes=[1] * len(boxes))
    truth = GroundTruth(np.array(boxes).reshape(-1, 4), np.ones(len(boxes), dtype=int))
    del image["instances"]
    pixels = image["image"].permute(1, 2, 0).numpy()
    return Picture(pixels, image, pixels, truth)


def draw_all(pictures, given: Networks) -> dict:
    sheet = columns(pictures, given, "abc")
    for column in sheet:
        for drawing in column.drawings:
            drawing(None)
    return {column.title: column for column in sheet}


@torch.no_grad()
def outputs(model, image) -> tuple[list, list, list]:
    """Logits, deltas and maps of the levels of a detector."""
    features = model.backbone(model.preprocess_image([image]).tensor)
    maps = [features[level] for level in model.head_in_features]
    return *model.head(maps), maps


def test_pfi_is_the_squared_difference_of_the_logits(drawn):
    both = networks(pfi=PFI())
    shown = picture(BOX)
    draw_all([shown], both)
    _, image, heats, highest = drawn["draw_levels"]
    assert image is shown.resized and list(heats) == ["p3", "p4", "p5", "p6", "p7"]
    student, teacher = (
        outputs(model, shown.inputs)[0] for model in (both.students["student"], both.teacher.model)
    )
    expected = ((student[0] - teacher[0]) ** 2).mean(1)[0].numpy()  # p3: stride 8
    np.testing.assert_allclose(heats["p3"], expected.repeat(8, 0).repeat(8, 1), rtol=1e-4)
    assert highest["p3"] == pytest.approx(expected.max(), rel=1e-4)


def test_ranks_are_those_of_the_scores_of_the_assigned_anchors(drawn):
    both = networks(rm=RankMimic())
    small = (44.0, 44, 60, 60)  # it has more candidates
    shown = picture(BOX, small)
    draw_all([shown], both)
    student, teacher = both.students["student"], both.teacher.model
    anchors = student.anchor_generator(outputs(student, shown.inputs)[2])
    truth = toys.image(boxes=[BOX, small], classes=[1, 1])["instances"]
    labels, boxes = student.label_anchors(anchors, [truth])
    candidates = (labels[0] == 1) & (boxes[0] == torch.tensor(small)).all(1)
    others = (labels[0] == 1) & ~candidates
    assert candidates.sum() > others.sum() > 0

    def ranks(model) -> list[int]:
        logits = cat(
            [x.permute(0, 2, 3, 1).reshape(-1, 3) for x in outputs(model, shown.inputs)[0]]
        )
        scores = logits[candidates, 1].tolist()
        return [sorted(scores, reverse=True).index(score) + 1 for score in scores]

    _, order, reference = drawn["draw_ranks"]
    assert reference == "teacher" and list(order) == ["student", "teacher"]
    assert order["teacher"].tolist() == ranks(teacher)
    assert order["student"].tolist() == ranks(student)
    _, _, box, points, best = drawn["draw_candidates"]
    assert tuple(box) == small and best.tolist() == ranks(teacher)
    centers = cat([x.get_centers() for x in anchors])[candidates]
    np.testing.assert_allclose(points, centers.numpy())


def test_without_candidates_the_ranks_say_so(drawn):
    draw_all([picture()], networks(rm=RankMimic()))
    assert "draw_ranks" not in drawn and "no object" in drawn["draw_message"][1]


def test_pgd_draws_the_locations_that_its_masks_weigh(drawn):
    both = networks(pgd=PGD(top_k=5))
    shown = picture(BOX)
    titles = draw_all([shown], both)
    assert {"PGD: classification", "PGD: boxes"} < set(titles) and "Key regions" not in titles
    _, _, boxes, points, weights, gaussians = drawn["draw_gaussians"]
    assert boxes.tolist() == [list(BOX)]
    assert len(points) == len(weights) == 5
    assert ((points > 8) & (points < 40)).all()
    # The weights are the density of the Gaussian that is drawn: fitted to these points.
    ((mean, covariance),) = gaussians
    np.testing.assert_allclose(mean, points.mean(0))
    expected = np.cov(points.T, bias=True) + np.eye(2) / 1200
    np.testing.assert_allclose(covariance, expected, rtol=1e-6)
    offsets = points - mean
    density = np.exp(-np.einsum("ni,ij,nj->n", offsets, np.linalg.inv(covariance), offsets) / 2)
    np.testing.assert_allclose(weights, density, rtol=1e-4)


@pytest.mark.parametrize("name", ["FCOS", "ATSS", "GFL", "DDOD", "AutoAssign"])
def test_every_dense_detector_has_all_panels(drawn, name):
    build = toys.fcos if name == "FCOS" else functools.partial(toys.point, name)
    sheet = draw_all([picture(BOX)], networks(build, pgd=PGD(), pfi=PFI(), rm=RankMimic()))
    assert {"Teacher", "PGD: boxes", "PFI: student", "RM: ranks"} < set(sheet)
    *_, points, weights, gaussians = drawn["draw_gaussians"]
    assert len(points) == len(weights) > 0 and len(gaussians) == 1
    assert ((points > 8) & (points < 40)).all()
    _, _, heats, highest = drawn["draw_levels"]
    assert all(heats[level].max() == pytest.approx(highest[level]) for level in heats)


def test_a_teacher_without_a_detector_has_attention_only(drawn):
    teacher = FeatureTeacher("torchvision/mobilenet_v3_small", None, out_features=["res3"])
    sheet = draw_all([picture(BOX)], networks(teacher=teacher, pkd=PKD()))
    assert list(sheet) == ["Student", "Attention: teacher", "Attention: student"]


def test_a_two_stage_detector_has_the_panels_of_methods_on_features(drawn):
    def build(width: int):
        return toys.rcnn()

    sheet = draw_all([picture(BOX)], networks(build, fgd=FGD(), pgd=PGD(on="neck")))
    assert list(sheet)[-2:] == ["Key regions", "PGD: neck"] and "Teacher" in sheet


@pytest.mark.parametrize("weighting", ["quality", "box"])
def test_other_weightings_have_no_gaussians(drawn, weighting):
    draw_all([picture(BOX)], networks(pgd=PGD(weighting=weighting)))
    *_, weights, gaussians = drawn["draw_gaussians"]
    assert len(weights) and not gaussians


def test_attention_has_the_temperature_of_the_configs_fgd(drawn):
    both, shown = networks(fgd=FGD(tau=0.1)), picture(BOX)
    draw_all([shown], both)
    _, _, heat = drawn["draw_heat"]
    magnitude = outputs(both.teacher.model, shown.inputs)[2][0].abs().mean(1)[0]
    cells = torch.softmax(magnitude.flatten() / 0.1, 0).view_as(magnitude) * magnitude.numel()
    # Between cells (1, 2) and (2, 3) the mean of the four.
    assert heat[15:17, 23:25].mean() == pytest.approx(cells[1:3, 2:4].mean().item(), rel=1e-4)


def test_uncertainty_is_that_of_the_methods_dropout():
    dropout = MCDropout((0.25,))
    assert networks(pkd=PKD(), fgd=FGD(uncertainty=dropout)).dropout is dropout
    assert networks(pkd=PKD()).dropout is None


def test_a_picture_without_objects_takes_their_panels_from_all(drawn):
    one, other = picture(BOX), picture(BOX)
    other = Picture(other.pixels, other.inputs, other.resized)
    both = networks(fgd=FGD(), rm=RankMimic(), pfi=PFI())
    assert "RM: ranks" in draw_all([one], both)
    sheet = draw_all([one, other], both)
    assert "PFI: student" in sheet and not {"RM: ranks", "Key regions"} & set(sheet)
    assert {len(column.drawings) for column in sheet.values()} == {2}
