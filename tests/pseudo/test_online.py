from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from d2kd import Distiller
from d2kd.data.manifest import Image
from d2kd.ema import EMA
from d2kd.matching import Detections, GroundTruth
from d2kd.pseudo import (
    DistributionThresholds,
    FBetaThresholds,
    FixedThresholds,
    Fusion,
    LabelTeacher,
    MeanTeacher,
)
from d2kd.pseudo.online import _share_weights
from d2kd.readers import num_classes
from tests import toys

CLASSES = 3


def found(*rows) -> Detections:
    """Boxes from (x, class, score), each 10 pixels wide."""
    boxes = [[x, 0, x + 10, 10] for x, _, _ in rows]
    return Detections(
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        classes=np.array([c for _, c, _ in rows], dtype=np.int64),
        scores=np.array([s for *_, s in rows], dtype=np.float32),
    )


def image(*boxes, **more) -> dict:
    """An input with boxes from (x, class), each 10 pixels wide."""
    instances = Instances((64, 96))
    corners = torch.tensor([[x, 0, x + 10, 10] for x, _ in boxes]).float()
    instances.gt_boxes = Boxes(corners.reshape(-1, 4))
    instances.gt_classes = torch.tensor([c for _, c in boxes], dtype=torch.long)
    pixels = torch.zeros(3, 64, 96, dtype=torch.uint8)
    regions = torch.zeros(0, 4)
    return dict(image=pixels, weak_image=pixels, instances=instances, ignore_boxes=regions, **more)


def unlabeled(**more) -> dict:
    return image(annotated_classes=[], **more)


class Teaching:
    """A mean teacher at some step, whose detections are given."""

    def __init__(self, *detections: Detections, step: int = 0, burn_in: int = 0, **fields):
        student = toys.retinanet(num_classes=CLASSES)
        self.hook = MeanTeacher(burn_in, **{"thresholds": FixedThresholds(0.7, 0.3), **fields})
        self.hook.connect(student, EMA(student, 0.9), CLASSES)
        self.hook.trainer = SimpleNamespace(iter=step, amp_dtype=None)
        self.detections = list(detections)
        self.hook._detect = lambda model, images: [self.detections.pop(0) for _ in images]

    def __call__(self, *batch: dict) -> list[dict]:
        return next(iter(self.hook.label_batches(lambda step, seed: [list(batch)])(0, 0)))


def boxes_of(x: dict) -> list[tuple[int, int]]:
    """(x, class) of the labels."""
    lefts = x["instances"].gt_boxes.tensor[:, 0].int().tolist()
    return list(zip(lefts, x["instances"].gt_classes.tolist(), strict=True))


def test_boxes_become_labels_and_regions_to_ignore_by_their_scores():
    teach = Teaching(found((0, 1, 0.9), (20, 2, 0.5), (40, 0, 0.2)))
    (x,) = teach(unlabeled())
    assert boxes_of(x) == [(0, 1)]
    assert x["ignore_boxes"].tolist() == [[20, 0, 30, 10]]
    assert "annotated_classes" not in x and "weak_image" not in x


def test_labels_stay_as_they_are_during_burn_in():
    teach = Teaching(step=4, burn_in=5)
    given = image((7, 0), relabel=True)
    x, y = teach(unlabeled(), given)
    assert x["annotated_classes"] == [] and boxes_of(x) == []
    assert boxes_of(y) == [(7, 0)]


def test_only_the_missing_classes_are_labeled():
    teach = Teaching(found((0, 0, 0.9), (20, 1, 0.8), (40, 2, 0.4)))
    (x,) = teach(image((60, 0), annotated_classes=[0, 2]))
    assert boxes_of(x) == [(60, 0), (20, 1)] and not len(x["ignore_boxes"])


def test_marked_images_lose_all_earlier_labels():
    teach = Teaching(found((0, 0, 0.9)))
    given = image((60, 1), relabel=True)
    given["ignore_boxes"] = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    (x,) = teach(given)
    assert boxes_of(x) == [(0, 0)] and not len(x["ignore_boxes"])


def test_complete_labels_are_not_touched():
    teach = Teaching(found((0, 0, 0.9)))
    x, y = teach(image((60, 1)), unlabeled())
    assert boxes_of(x) == [(60, 1)] and boxes_of(y) == [(0, 0)]


def test_image_with_unsure_boxes_only_stays_unlabeled():
    (x,) = Teaching(found((0, 1, 0.5)))(unlabeled())
    assert x["annotated_classes"] == []


def test_boxes_without_an_area_are_no_labels():
    detections = found((0, 1, 0.9), (30, 1, 0.9))
    detections.boxes[0, 2] = 0.5
    (x,) = Teaching(detections)(unlabeled())
    assert boxes_of(x) == [(30, 1)]


def test_weights_of_labels_follow_the_fusion():
    teach = Teaching(found((20, 1, 0.75)), fusion=Fusion(weight="score"))
    (x,) = teach(image((60, 0), annotated_classes=[0]))
    assert x["instances"].gt_weights.tolist() == [1.0, 0.75]


def test_given_inputs_are_not_changed():
    x = unlabeled()
    Teaching(found((0, 1, 0.9)))(x)
    assert x["annotated_classes"] == [] and not len(x["instances"]) and "weak_image" in x


def test_labels_equal_those_that_are_made_once():
    torch.manual_seed(0)
    student = toys.retinanet(num_classes=CLASSES)
    nn.init.zeros_(student.head.cls_score.bias)  # scores around 0.5
    nn.init.normal_(student.head.cls_score.weight, std=1.0)
    pixels = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    rule, fusion = FixedThresholds(0.75, 0.6), Fusion()
    hook = MeanTeacher(0, thresholds=rule, fusion=fusion)
    ema = EMA(student, 0.9)
    hook.connect(student, ema, CLASSES)
    hook.trainer = SimpleNamespace(iter=0, amp_dtype=None)
    x = unlabeled()
    x["weak_image"] = pixels
    (x,) = next(iter(hook.label_batches(lambda step, seed: [[x]])(0, 0)))

    once = LabelTeacher(ema.model, None, ["a", "b", "c"], min_size_test=0)
    (detections,) = once([Image(0, "x.png", 64, 96)], [pixels])
    owned = np.ones((1, CLASSES), bool)
    labels = fusion([detections], owned, [rule.fit([], None, owned[0])], (64, 96))
    sides = (labels.boxes[:, 2:] - labels.boxes[:, :2]).min(1)
    assert (sides >= 1).all() and 0 < labels.ignore.sum() < len(sides)
    torch.testing.assert_close(
        x["instances"].gt_boxes.tensor, torch.tensor(labels.boxes[~labels.ignore])
    )
    assert x["instances"].gt_classes.tolist() == labels.classes[~labels.ignore].tolist()
    torch.testing.assert_close(x["ignore_boxes"], torch.tensor(labels.boxes[labels.ignore]))


DETECTORS = {
    "RetinaNet": toys.retinanet,
    "FCOS": toys.fcos,
    "Faster R-CNN": toys.rcnn,
    "Mask R-CNN": lambda: toys.rcnn(mask=True),
    "Cascade R-CNN": toys.cascade,
    **{name: lambda name=name: toys.point(name) for name in ("ATSS", "GFL", "AutoAssign")},
    "DDOD": lambda: toys.point("DDOD", assigner="atss"),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_labels_and_learns_from_its_labels(name):
    torch.manual_seed(0)
    distiller = Distiller(student=DETECTORS[name]())
    student = distiller.student
    hook = MeanTeacher(0, thresholds=FixedThresholds(0.001, 0.0005), score_floor=0.0)
    hook.connect(student, EMA(student, 0.9), num_classes(student))
    hook.trainer = SimpleNamespace(iter=0, amp_dtype=None)
    batch = toys.batch()
    batch[1].update(annotated_classes=[], instances=batch[1]["instances"][:0])
    for x in batch:
        x.update(weak_image=x["image"], ignore_boxes=torch.zeros(0, 4))
    labeled = next(iter(hook.label_batches(lambda step, seed: [batch])(0, 0)))
    assert "annotated_classes" not in labeled[1] and len(labeled[1]["instances"])
    with EventStorage():
        losses = distiller.train()(labeled)
    assert all(torch.isfinite(x) for x in losses.values())
    sum(losses.values()).backward()


def test_adaptive_thresholds_are_fitted_on_the_latest_images():
    rule = DistributionThresholds(objects_per_image=1)
    rounds = [found((0, 0, s), (20, 1, s), (40, 2, s)) for s in (0.9, 0.5, 0.4, 0.3)]
    teach = Teaching(*rounds, thresholds=rule, refit_period=2, window=2)
    highs = []
    for step in range(4):
        teach.hook.trainer.iter = step
        teach(unlabeled())
        highs.append(teach.hook.fits.thresholds.high.tolist())
    # Fits at the steps 0, 1 (the window is full) and 2 (the period) see the latest two images.
    own = np.ones(CLASSES, bool)
    seen = (rounds[:1], rounds[:2], rounds[1:3])
    first, second, third = (rule.fit(d, None, own).high.tolist() for d in seen)
    assert highs == [first, second, third, third] and third not in (first, second)


def test_until_the_window_is_full_each_doubling_of_the_images_is_fitted():
    rule = DistributionThresholds(objects_per_image=1)
    rounds = [found((0, 0, s), (20, 1, s), (40, 2, s)) for s in np.linspace(0.9, 0.1, 9)]
    teach = Teaching(*rounds, thresholds=rule, refit_period=100, window=6, step=1)
    highs = []
    for step in range(1, 10):
        teach.hook.trainer.iter = step
        teach(unlabeled())
        highs.append(teach.hook.fits.thresholds.high.tolist())
    own = np.ones(CLASSES, bool)
    one, two, four = (rule.fit(rounds[:n], None, own).high.tolist() for n in (1, 2, 4))
    assert highs == [one, two, two] + [four] * 6


def test_thresholds_that_need_truths_take_the_labeled_images_of_the_batches():
    rule = FBetaThresholds(objects=1)
    labeled = found((0, 0, 0.8), (40, 0, 0.6), (20, 1, 0.5), (40, 2, 0.4))
    teach = Teaching(found((0, 0, 0.9)), labeled, thresholds=rule)
    x, _ = teach(unlabeled(), image((0, 0), (20, 1), (40, 2)))
    truth = GroundTruth(
        np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10.0]]), np.array([0, 1, 2])
    )
    expected = rule.fit([labeled], [truth], np.ones(CLASSES, bool))
    assert teach.hook.fits.thresholds.high.tolist() == expected.high.tolist()
    assert boxes_of(x) == [(0, 0)]


def test_without_labeled_images_such_thresholds_wait():
    teach = Teaching(found((0, 0, 0.9)), thresholds=FBetaThresholds())
    (x,) = teach(unlabeled())
    assert x["annotated_classes"] == []


@pytest.mark.parametrize(
    "batch, fields, reason",
    [
        ([image((0, 0))], {}, "no image of the last 2 steps lacks labels"),
        ([unlabeled()], dict(thresholds=FBetaThresholds()), "FBetaThresholds is fitted on images"),
    ],
)
def test_a_teacher_that_labels_nothing_says_why_once(batch, fields, reason, caplog):
    teach = Teaching(*[found()] * 6, burn_in=1, log_period=2, **fields)
    for step in range(6):
        teach.hook.trainer.iter = step
        teach(*batch)
        teach.hook.after_step()
        # The interval in which the burn-in ends does not count.
        assert ("labels no image" in caplog.text) == (step >= 3)
    assert caplog.text.count("labels no image") == 1 and reason in caplog.text


def test_boxes_of_low_scores_are_dropped_also_of_a_detector_without_a_threshold():
    hook, student = MeanTeacher(0, score_floor=0.4, max_detections=2), toys.retinanet()
    hook.connect(student, EMA(student, 0.9), CLASSES)
    hook.trainer = SimpleNamespace(iter=0, amp_dtype=None)
    instances = Instances((64, 96), scores=torch.tensor([0.5, 0.9, 0.3, 0.7]))
    instances.pred_boxes, instances.pred_classes = Boxes(torch.rand(4, 4)), torch.zeros(4)

    class Fixed(nn.Linear):
        def forward(self, inputs):
            return [{"instances": instances}]

    (boxes,) = hook._detect(Fixed(1, 1), [torch.zeros(3, 64, 96)])
    assert boxes.scores.tolist() == pytest.approx([0.9, 0.7])


def test_state_continues_exactly(tmp_path):
    def rounds():
        return [found((0, 0, s), (20, 1, s - 0.1)) for s in (0.9, 0.5, 0.6, 0.3)]

    fields = dict(thresholds=DistributionThresholds(objects_per_image=1), refit_period=2)
    whole = Teaching(*rounds(), **fields)
    expected = []
    for step in range(4):
        whole.hook.trainer.iter = step
        expected += whole(unlabeled())
        if step == 2:
            torch.save(whole.hook.state_dict(), tmp_path / "state.pth")
    resumed = Teaching(*rounds()[3:], step=3, **fields)
    resumed.hook.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    (x,) = resumed(unlabeled())
    assert boxes_of(x) == boxes_of(expected[3])
    assert resumed.hook.fits.thresholds.high.tolist() == whole.hook.fits.thresholds.high.tolist()
    assert len(resumed.hook.fits._found) == 4
    for name in ("_images", "_boxes", "_ignored", "_lacking"):  # for the next record of the log
        assert getattr(resumed.hook, name) == getattr(whole.hook, name) > 0 or name == "_ignored"


def test_measurements_are_recorded_once_a_period():
    teach = Teaching(
        found((0, 0, 0.9), (20, 1, 0.5)), found((0, 0, 0.8)), found((0, 0, 0.9)), log_period=2
    )
    with EventStorage(0) as storage:
        teach.hook.trainer.storage = storage
        for step in range(2):
            teach.hook.trainer.iter = step
            teach(unlabeled(), image((0, 0), (20, 0), (40, 0)))
            teach.hook.after_step()
            assert bool(storage.latest()) == (step == 1)
        scalars = {name: value for name, (value, _) in storage.latest().items()}
    # Two images with one label each; the first has a region to ignore. The student's detections are
    # the last that were given, and equal the teacher's.
    assert scalars["mean_teacher/boxes_per_image"] == 1
    assert scalars["mean_teacher/ignored_per_image"] == 0.5
    assert scalars["mean_teacher/agreement"] == 1 and scalars["mean_teacher/divergence"] == 0


@pytest.mark.parametrize("own, of_training, period", [(None, 3, 3), (2, 3, 2)])
def test_the_period_of_the_log_is_the_trainings(own, of_training, period):
    hook, student = MeanTeacher(0, log_period=own), toys.retinanet(num_classes=CLASSES)
    hook.connect(student, EMA(student, 0.9), CLASSES, log_period=of_training)
    recorded = []
    hook._record = lambda: recorded.append(hook.trainer.iter)
    for step in range(6):
        hook.trainer, hook._images = SimpleNamespace(iter=step), 1
        hook.after_step()
    assert recorded == list(range(period - 1, 6, period))


def test_shared_weights_follow_the_model_and_settings_do_not():
    model = toys.retinanet()
    shared = _share_weights(model)
    with torch.no_grad():
        for x in (*model.parameters(), *model.buffers()):
            x.fill_(2)
    shared.test_score_thresh = 0.9
    assert all((x == 2).all() for x in (*shared.parameters(), *shared.buffers()))
    assert not shared.training and model.training and model.test_score_thresh != 0.9


def test_without_an_average_it_is_refused():
    with pytest.raises(ValueError, match=r"train.ema.decay: expected a decay"):
        MeanTeacher(0).connect(toys.retinanet(), None, CLASSES)


def test_detector_that_cannot_ignore_regions_is_refused():
    other = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="cannot ignore regions or classes for this detector"):
        MeanTeacher(0).connect(other, EMA(other, 0.9), CLASSES)


def test_mapper_without_a_weak_view_is_refused():
    x = unlabeled()
    del x["weak_image"]
    with pytest.raises(ValueError, match=r"dataloader.train.mapper: expected .*TwoViewMapper"):
        Teaching(burn_in=5)(x)


@pytest.mark.parametrize("field", ["burn_in", "refit_period", "window", "log_period"])
def test_values_outside_their_range_are_refused(field):
    with pytest.raises(ValueError, match=rf"train.mean_teacher.{field}: expected a whole number"):
        MeanTeacher(**{"burn_in": 0, field: -1})


@pytest.mark.parametrize("high", [1.5, 0.2, [0.5, 0.5], "abc"])
def test_impossible_thresholds_are_refused_before_the_first_step(high):
    hook, student = MeanTeacher(0, thresholds=FixedThresholds(high, 0.3)), toys.retinanet()
    with pytest.raises(ValueError, match=r"^train\.mean_teacher\.thresholds: expected .*found"):
        hook.connect(student, EMA(student, 0.9), CLASSES)


@pytest.mark.parametrize("part", ["thresholds", "fusion"])
def test_parts_of_another_type_are_refused(part):
    with pytest.raises(TypeError, match=rf"train.mean_teacher.{part}: expected an object"):
        MeanTeacher(0, **{part: 0.7})
