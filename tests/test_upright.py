import pytest
from detectron2.modeling.anchor_generator import RotatedAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformRotated

from d2kd import Distiller, Teacher
from d2kd.pseudo.teachers import LabelTeacher
from tests import toys


def rotated_rpn():
    model = toys.rcnn()
    model.proposal_generator.anchor_generator = RotatedAnchorGenerator(
        sizes=[[32]] * 5, aspect_ratios=[[1.0]], strides=[4, 8, 16, 32, 64], angles=[[0]]
    )
    return model


def rotated_head():
    model = toys.rcnn()
    model.roi_heads.box_predictor.box2box_transform = Box2BoxTransformRotated((10, 10, 5, 5, 1))
    return model


@pytest.mark.parametrize(
    "model, place",
    [
        (rotated_rpn, r"proposal_generator\.anchor_generator"),
        (rotated_head, r"roi_heads\.box_predictor"),
    ],
)
def test_detectors_of_rotated_boxes_are_refused(model, place):
    message = rf"{{}} GeneralizedRCNN: expected a detector of upright boxes .* {place}"
    with pytest.raises(ValueError, match=message.format("Teacher")):
        Teacher(model(), None)
    with pytest.raises(ValueError, match=message.format("LabelTeacher")):
        LabelTeacher(model(), None, ["a", "b", "c"])
    with pytest.raises(ValueError, match=message.format("student")):
        Distiller(student=model())
