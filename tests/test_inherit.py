import pytest
import torch

from d2kd import Distiller, Teacher
from d2kd.inherit import inherit_weights
from d2kd.readers import get_reader
from tests import toys


def test_neck_and_head_are_copied_and_the_bottom_up_network_is_not():
    student, teacher = toys.retinanet(width=4), toys.retinanet(width=6)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    report = inherit_weights(get_reader(student), get_reader(teacher))
    taken = teacher.state_dict()
    copied = 0
    for name, tensor in student.state_dict().items():
        # Lateral convolutions and p6 have other shapes, because the student's backbone is narrower.
        fits = name in taken and taken[name].shape == tensor.shape
        if fits and not name.startswith("backbone.bottom_up."):
            assert torch.equal(tensor, taken[name]), name
            copied += 1
        else:
            assert torch.equal(tensor, before[name]), name
    assert copied > 0 and len(report.copied) == copied
    assert str(report).startswith(f"{copied} of ")
    assert "backbone.fpn_lateral3.weight" in report.other_shape
    assert "backbone.fpn_lateral3.weight" in str(report)


def test_the_share_counts_values_of_the_students_neck_and_head():
    student, teacher = toys.retinanet(width=4), toys.retinanet(width=6)
    outside = {k: v for k, v in student.state_dict().items() if not k.startswith("backbone.bottom")}
    other = [k for k, v in outside.items() if teacher.state_dict()[k].shape != v.shape]
    total = sum(v.numel() for v in outside.values())
    expected = 1 - sum(outside[k].numel() for k in other) / total
    share = inherit_weights(get_reader(student), get_reader(teacher)).share
    assert share == pytest.approx(expected) and 0.5 < share < 1


@pytest.mark.parametrize(("channels", "warns"), [(8, False), (12, True)])
def test_inheriting_little_is_a_warning(channels, warns, caplog):
    # A neck of another width leaves only biases of the prediction layers and the anchors' scales.
    teacher = Teacher(toys.retinanet(channels=channels), None)
    with caplog.at_level("WARNING", logger="d2kd.distiller"):
        Distiller(student=toys.retinanet(), teacher=teacher, inherit=True)
    assert ("copied little" in caplog.text) == warns


def test_the_same_inheritance_is_said_once(caplog):
    student, teacher = toys.retinanet(), Teacher(toys.retinanet(), None)
    with caplog.at_level("INFO", logger="d2kd.distiller"):
        model = Distiller(student=student, teacher=teacher, inherit=True)
        taken = student.head.cls_score.weight
        taken.data.zero_()  # other initial weights are loaded
        model.inherit()
    assert caplog.text.count("Inherited from the teacher") == 1
    assert torch.equal(taken, teacher.model.head.cls_score.weight)


def test_no_tensor_that_fits_is_an_error():
    with pytest.raises(ValueError, match=r"inherit=True: expected tensors .* found none of"):
        inherit_weights(
            get_reader(toys.rcnn(channels=8)), get_reader(toys.fcos(channels=12, num_classes=4))
        )


def test_counts_of_positives_are_not_inherited():
    student, teacher = toys.point("DDOD"), toys.point("DDOD")
    teacher.cls_balance.positives += 7
    inherit_weights(get_reader(student), get_reader(teacher))
    assert not student.cls_balance.positives.any()
    assert torch.equal(student.head.cls_score.weight, teacher.head.cls_score.weight)
