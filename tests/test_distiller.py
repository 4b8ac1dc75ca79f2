import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.evaluation import inference_context
from torch import nn

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, MCDropout, Methods, Mimic, RankMimic
from d2kd.readers import get_reader
from tests import toys


def distiller(
    student: Callable[[], nn.Module] = toys.retinanet,
    teacher: Callable[[], nn.Module] = lambda: toys.retinanet(width=6, channels=12),
    **fields,
) -> Distiller:
    fields.setdefault("methods", Methods(fgd=FGD(uncertainty=MCDropout()), mimic=Mimic()))
    return Distiller(student=student(), teacher=Teacher(teacher(), None), **fields)


def train(model: nn.Module, batches: list, steps: int = 5) -> list[dict[str, float]]:
    """Train with SGD and return the losses of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    model.train()
    history = []
    for i in range(steps):
        losses = model(batches[i % len(batches)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items()})
    return history


# ---- no methods, no difference


@pytest.mark.parametrize("build", [toys.retinanet, toys.fcos, toys.rcnn])
def test_without_methods_it_trains_bit_for_bit_like_the_student(build):
    alone = build()
    with_teacher = distiller(lambda: copy.deepcopy(alone), methods=Methods())
    batches = [toys.batch(), [toys.image([], seed=9), toys.image(size=(50, 70), seed=8)]]
    # The first model that runs can differ from an equal second one in the last bit of a bias
    # (1e-20).
    train(copy.deepcopy(alone), batches)
    histories, states = [], []
    for model in (alone, with_teacher):
        torch.manual_seed(3)  # for the sampling of proposals in the R-CNN
        histories.append(train(model, batches))
        states.append(model.state_dict())
    assert histories[0] == histories[1]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize(
    "fields, count",
    [
        (dict(methods=Methods()), 1),
        (dict(methods=None), 1),
        (dict(methods=Methods(), inherit=True), 0),
        ({}, 0),
    ],
)
def test_a_teacher_that_teaches_nothing_is_said_once(caplog, fields, count):
    with caplog.at_level("WARNING", logger="d2kd.distiller"):
        train(distiller(**fields), [toys.batch()], steps=2)
        Distiller(student=toys.retinanet())  # without a teacher, nothing is missed
    assert caplog.text.count("The student trains without distillation") == count


# ---- names, checkpoints, evaluation


def test_state_dict_has_the_students_names_and_no_teacher():
    model = distiller()
    own = dict(toys.retinanet().named_parameters())
    names = dict(model.named_parameters())
    rest = set(names) - set(own)
    assert set(own) < set(names)
    assert rest and all(name.startswith("distillation.") for name in rest)
    assert {k for k in model.state_dict() if not k.startswith("distillation.")} == set(
        toys.retinanet().state_dict()
    )
    teachers = {id(p) for p in model.teacher.model.parameters()}
    assert not teachers & {id(p) for p in model.parameters()}


def test_moving_and_casting_change_the_students_buffers():
    model = distiller().to(torch.float64)
    assert model.student.pixel_mean.dtype == torch.float64
    assert model.pixel_mean is model.student.pixel_mean
    assert model.student.backbone.fpn_output3.weight.dtype == torch.float64


def test_a_deep_copy_is_complete_and_independent():
    model = distiller()
    other = copy.deepcopy(model)
    assert other.student.backbone is other.backbone is not model.backbone
    train(other, [toys.batch()], steps=1)
    assert other.head.cls_score.weight is other.student.head.cls_score.weight
    assert not torch.equal(model.head.cls_score.weight, other.head.cls_score.weight)


def test_evaluation_equals_the_student():
    model = distiller().eval()
    inputs = toys.batch()
    found, expected = model(inputs), model.student(inputs)
    assert not model.student.training
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert torch.equal(a["instances"].scores, b["instances"].scores)


PLAIN = """
import sys, torch
from detectron2.checkpoint import DetectionCheckpointer
from tests import toys
model = toys.retinanet(test_score_thresh=0.0)
DetectionCheckpointer(model).load(sys.argv[1])
found = model.eval()(toys.batch())
torch.save([(x["instances"].pred_boxes.tensor, x["instances"].scores) for x in found], sys.argv[2])
assert not any(name.split(".")[0] == "d2kd" for name in sys.modules), "d2kd was imported"
"""


def test_checkpoint_gives_the_same_detections_without_d2kd(tmp_path):
    from d2kd.checkpoint import Checkpointer

    model = distiller(lambda: toys.retinanet(test_score_thresh=0.0))
    train(model, [toys.batch()], steps=3)
    Checkpointer(model, str(tmp_path)).save("model_final")
    here = model.eval()(toys.batch())
    out = tmp_path / "out.pt"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, str(tmp_path / "model_final.pth"), str(out)],
        check=True,
    )
    for (boxes, scores), x in zip(torch.load(out), here, strict=True):
        assert len(boxes) > 0
        assert torch.equal(boxes, x["instances"].pred_boxes.tensor)
        assert torch.equal(scores, x["instances"].scores)


def test_training_and_evaluation_do_not_change_the_teacher():
    model = distiller()
    before = copy.deepcopy(model.teacher.model.state_dict())
    train(model, [toys.batch()], steps=2)
    with inference_context(model), torch.no_grad():
        model(toys.batch())
    train(model, [toys.batch()], steps=2)
    after = model.teacher.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(m.training for m in model.teacher.model.modules())
    assert all(p.grad is None for p in model.teacher.model.parameters())


def test_no_hook_or_map_is_left_after_a_step():
    model = distiller()
    train(model, [toys.batch()], steps=1)
    assert not any(m._forward_hooks for m in model.modules())
    assert not any(
        torch.is_tensor(v) and v.dim() == 4
        for m in [model, model.student, *model.distillation.modules()]
        for v in vars(m).values()
    )


# ---- pairs of detectors and unusual batches


def test_images_go_to_the_device_once():
    moves = []

    class Image(torch.Tensor):
        """Record each copy to a device; results of operations are plain tensors."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.to, torch.Tensor.cuda):
                moves.append(function)
            with torch._C.DisableTorchFunctionSubclass():
                found = function(*args, **(kwargs or {}))
            return found.as_subclass(torch.Tensor) if function is torch.Tensor.to else found

    batch = toys.batch()
    for x in batch:
        x["image"] = x["image"].as_subclass(Image)
    images = [x["image"] for x in batch]
    distiller()(batch)
    assert len(moves) == len(batch)
    assert all(x["image"] is image for x, image in zip(batch, images, strict=True))  # as it was


def test_mixed_pair_trains():
    # The Faster R-CNN teacher differs from the RetinaNet student in widths, pixel statistics,
    # channel order and padding.
    def teacher():
        model = toys.rcnn(channels=12)
        model.input_format = "RGB"
        model.backbone._size_divisibility = 64
        return model

    # The batch norms of this teacher are not trained, so that its maps grow to hundreds.
    model = distiller(
        teacher=teacher, methods=Methods(fgd=FGD(weight=1e-5), mimic=Mimic(weight=1e-4))
    )
    assert model.teacher.input_format == "RGB" and model.input_format == "BGR"
    batch = [toys.image(size=(70, 90)), toys.image(size=(60, 100), seed=1)]
    history = train(model, [batch], steps=8)
    assert history[-1]["loss_distill_mimic"] < history[0]["loss_distill_mimic"]


@pytest.mark.parametrize("student", [toys.fcos, lambda: toys.rcnn(mask=False)])
def test_other_students_train(student):
    model = distiller(student)
    losses = model(toys.batch())
    sum(losses.values()).backward()
    assert torch.isfinite(losses["loss_distill_fgd"])
    assert all(p.grad is not None for p in model.distillation.parameters())


@pytest.mark.parametrize(
    "batch",
    [
        [toys.image([]), toys.image(seed=1)],
        [toys.image([]), toys.image([], seed=1)],
        [toys.image(size=(61, 83)), toys.image(size=(97, 45), seed=1)],
        [toys.image()],
        [toys.image([[3, 3, 4, 4], [-20, -20, -5, -5]])],
    ],
    ids=["an image without boxes", "no boxes", "odd sizes", "one image", "one pixel, off image"],
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_unusual_batches_give_finite_losses_and_gradients(batch, dtype):
    model = distiller()
    # On a map of one cell, oneDNN's bf16 gradient of a strided convolution reads
    # uninitialized memory. Here this would be P7's weights.
    with torch.backends.mkldnn.flags(enabled=dtype is None):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
            losses = model(batch)
        sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name


def test_methods_compute_in_fp32_under_autocast():
    seen = []

    class Spy(Mimic):
        def compare(self, pair, student, teacher, targets):
            seen.extend((student.dtype, teacher.dtype))
            return super().compare(pair, student, teacher, targets)

    model = distiller(methods=Methods(spy=Spy()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(toys.batch())
    assert set(seen) == {torch.float32}


def test_method_weight_scales_its_loss():
    one, two = distiller(methods=Methods(m=Mimic())), None
    two = copy.deepcopy(one)
    two.distillation.m.weight = 2.0
    losses = [model(toys.batch())["loss_distill_m"] for model in (one, two)]
    torch.testing.assert_close(losses[1], 2 * losses[0])


# ---- what is logged


def test_terms_and_ratio_are_recorded(storage):
    model = distiller(methods=Methods(m=Mimic(weight=3.0)))
    losses = model(toys.batch())
    latest = {k: v[0] for k, v in storage.latest().items()}
    task = sum(v.item() for k, v in losses.items() if not k.startswith("loss_distill"))
    weighted = losses["loss_distill_m"].item()
    assert latest["distill/m/weighted"] == pytest.approx(weighted)
    assert latest["distill/m/raw"] == latest["distill/m/mse"] == pytest.approx(weighted / 3)
    assert latest["distill/m/ratio"] == pytest.approx(weighted / task)
    storage.step()
    storage.put_scalar("distill/m/ratio", -1.0, smoothing_hint=False)
    model(toys.batch())  # log_period does not include this step
    assert storage.latest()["distill/m/ratio"][0] == -1.0


def test_a_method_much_larger_than_the_task_is_warned_about_once(caplog, storage, same_normalizer):
    model = distiller(methods=Methods(m=Mimic(weight=0.1)))
    warned = []
    for _ in range(12):
        model(toys.batch())
        storage._iter += model.loss_weights.log_period
        warned.append(sum("times the student's own" in r.message for r in caplog.records))
    assert 10 < storage.latest()["distill/m/ratio"][0] < 50
    assert warned == [0] * 9 + [1] * 3  # after ten records in a row, and once


# ---- mistakes are found when the model is built


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(teacher=lambda: toys.retinanet(num_classes=5)), "number of classes, found 3 and 5"),
        (dict(methods=Methods(fgd=FGD(levels=["p2"]))), r"levels of the student.* found 'p2'"),
        (dict(teacher=lambda: toys.rcnn(channels=12), inherit=True), "inherit=True"),
        (dict(input_format="HSV"), "expected 'BGR' or 'RGB', found 'HSV'"),
    ],
)
def test_mistakes_are_errors_that_name_them(fields, message):
    with pytest.raises(ValueError, match=message):
        distiller(**fields)


def test_student_from_a_config_file():
    teacher = Teacher("configs/demo/teacher.py", None)
    model = Distiller(
        student="configs/demo/student.py", teacher=teacher, methods=Methods(mimic=Mimic())
    )
    assert model.input_format == "RGB"
    assert torch.isfinite(model(toys.batch())["loss_distill_mimic"])


def test_other_classes_are_allowed_on_request():
    model = distiller(teacher=lambda: toys.retinanet(num_classes=5), same_classes=False)
    assert torch.isfinite(model(toys.batch())["loss_distill_fgd"])


def test_methods_without_a_teacher_are_an_error():
    with pytest.raises(ValueError, match="for the methods mimic, which need a teacher"):
        Distiller(student=toys.retinanet(), methods=Methods(mimic=Mimic()))


def test_weights_are_inherited_when_the_model_is_built():
    model = distiller(teacher=lambda: toys.retinanet(width=6), inherit=True)
    assert torch.equal(model.head.cls_score.weight, model.teacher.model.head.cls_score.weight)


def test_it_trains_in_detectron2s_simple_trainer():
    model = distiller()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    SimpleTrainer(model, [toys.batch()] * 2, optimizer).train(0, 2)


def test_the_teacher_assigns_boxes_on_request():
    student, teacher = toys.point("DDOD"), toys.point("DDOD", width=6)
    torch.nn.init.normal_(teacher.head.cls_score.weight, std=0.5)
    judged = []
    match = student.match
    student.match = lambda *args: judged.append(args[1:3]) or match(*args)
    model = Distiller(
        student=student,
        teacher=Teacher(teacher, None),
        methods=Methods(mimic=Mimic()),
        teacher_assigns=True,
    )
    inputs = toys.batch()
    model.train()(inputs)
    reader = get_reader(teacher)
    shown = reader.run(teacher.preprocess_image(inputs).tensor, {"logits", "boxes"})
    assert len(judged) == 2 and student.guide is None
    for logits, boxes in judged:
        assert torch.equal(logits, reader.flatten(shown.logits, 3))
        assert torch.equal(boxes, shown.boxes)


def test_rank_mimicking_sees_the_assignment_of_the_students_losses():
    def build(**fields):
        return Distiller(
            student=toys.point("DDOD"),
            teacher=Teacher(toys.point("DDOD", width=6), None),
            methods=Methods(rm=RankMimic(**fields)),
            teacher_assigns=True,
        )

    build(assigner="teacher")
    with pytest.raises(ValueError, match=r"methods.rm.assigner: expected 'teacher'"):
        build()


def test_a_teacher_cannot_assign_for_a_static_assigner():
    with pytest.raises(ValueError, match=r"teacher_assigns: expected a student whose.*RetinaNet"):
        distiller(teacher_assigns=True)


def test_a_teacher_that_assigns_needs_the_students_anchors():
    with pytest.raises(ValueError, match=r"teacher_assigns: expected.*anchors"):
        distiller(lambda: toys.point("DDOD"), teacher_assigns=True, inherit=False)
