"""Values are compared with annotations and defaults of the classes that they are for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import FPN
from omegaconf import OmegaConf

from d2kd import FeatureTeacher, Teacher
from d2kd.checks import check_complete, check_kinds, check_nodes
from d2kd.config import check_config, load_config


class Target:
    def __init__(
        self,
        flag: bool = False,
        count: int = 1,
        ratio: float = 0.5,
        text: str = "a",
        maybe: int | None = None,
        either: bool | str = False,
        names: Sequence[str] | None = None,
        path: Path | str = "",
        word: Literal["a", "b"] = "a",
        call: Callable = print,
        rate: float | torch.Tensor = 1.0,
        anything: Any = None,
        late: bool = None,  # noqa: RUF013, many annotations leave None out
        plain_flag=True,
        plain_number=3,
        plain_text="a",
    ):
        pass


class Derived(Target):
    def __init__(self, more: int = 1, **fields):
        super().__init__(**fields)


def node(target=Target, **fields):
    return L(target)(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        dict(flag=True, count=3, ratio=1, text="", maybe=None, either="x", names=["a"], path="p"),
        dict(maybe=2, either=True, names=None, word="b", call=len, rate=0.1, anything="x"),
        dict(late=None),
        dict(plain_flag=False, plain_number=0.5, plain_text=None),
        dict(ratio=float("inf"), names="ab"),
        dict(plain_number=[1, 2], anything=dict(a=1)),
    ],
)
def test_right_kinds_pass(fields):
    check_kinds("x", node(**fields))


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("flag", "no", "True or False"),
        ("flag", 0, "True or False"),
        ("flag", [True], "True or False"),
        ("count", "3", "a whole number"),
        ("count", 3.0, "a whole number"),
        ("count", True, "a whole number"),
        ("ratio", "half", "a finite number"),
        ("ratio", float("nan"), "a finite number"),
        ("text", 3, "a text"),
        ("maybe", "x", "a whole number or None"),
        ("either", 3, "True or False or a text"),
        ("names", 3, "Sequence or None"),
        ("word", "c", "Literal"),
        ("rate", "abc", "a finite number or Tensor"),
        ("plain_flag", "off", "True or False"),
        ("plain_number", "abc", "a number as its default 3"),
    ],
)
def test_wrong_kinds_are_named(name, value, expected):
    with pytest.raises(ValueError) as error:
        check_kinds("model.x", node(**{name: value}))
    assert str(error.value).startswith(f"model.x.{name}: expected ")
    assert expected in str(error.value)


def test_fields_that_are_passed_on_to_a_base_are_checked():
    with pytest.raises(ValueError, match=r"x.count: expected a whole number, found 'a'"):
        check_kinds("x", node(Derived, count="a"))


def test_nodes_and_objects_are_left_alone():
    check_kinds("x", node(count=L(int)(), call=node(), rate=torch.ones(()), names=node()))


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.lr=abc", r"optimizer.lr: expected a number >= 0, found 'abc'"),
        ("optimizer.lr=-1", r"optimizer.lr: expected a number >= 0, found -1"),
        ("optimizer.lr=.nan", r"optimizer.lr: expected a number >= 0, found '.nan'"),
        ("optimizer.weight_decay=x", r"optimizer.weight_decay: expected a number >= 0"),
        ("model.num_classes=0", r"model.num_classes: expected a whole number >= 1, found 0"),
        ("model.num_classes=10.5", r"model.num_classes: expected a whole number >= 1"),
        ("dataloader.train.total_batch_size=0", r"total_batch_size: expected a whole number >= 1"),
        (
            "dataloader.test.batch_size=0",
            r"dataloader.test.batch_size: expected a whole number >= 1",
        ),
        ("dataloader.train.num_workers=-1", r"num_workers: expected a whole number >= 0"),
        ("model.test_nms_thresh=2", r"test_nms_thresh: expected a number >= 0 and <= 1, found 2"),
        ("lr_multiplier.warmup_length=1000", r"warmup_length: expected a number .*found 1000"),
    ],
)
def test_values_of_a_real_config(override, message):
    cfg = load_config("configs/demo/student.py", ["train.device=cpu", override])
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def test_a_flag_of_the_distiller():
    cfg = load_config("configs/demo/distill.py", ["train.device=cpu", "model.inherit=no"])
    with pytest.raises(ValueError, match=r"model.inherit: expected True or False, found 'no'"):
        check_config(cfg)


def test_nodes_of_a_part_of_a_config():
    cfg = OmegaConf.create(dict(a=[node(count="x")]), flags={"allow_objects": True})
    with pytest.raises(ValueError, match=r"labels.a\[0\].count: expected a whole number"):
        check_nodes(cfg, "labels")
    with pytest.raises(ValueError, match=r"b.out_chanels: .*Did you mean out_channels"):
        check_nodes(L(FPN)(out_chanels=3), "b")


class Needs:
    def __init__(self, count: int, either: str | bool | None, anything, *more, plain=3, **rest):
        pass


def test_fields_without_a_default_are_missed():
    fields = dict(count=1, either=None, anything="x")
    check_complete(L(Needs)(**fields), "model")
    for name, expected in dict(
        count="a whole number", either="a text or True or False or None", anything="a value"
    ).items():
        incomplete = L(Needs)(**{k: v for k, v in fields.items() if k != name})
        cfg = OmegaConf.create(dict(a=[incomplete]), flags={"allow_objects": True})
        message = rf"^model\.a\[0\]\.{name}: expected {expected}, found nothing\. Needs has no d"
        with pytest.raises(ValueError, match=message):
            check_complete(cfg, "model")
        check_complete(cfg, "model", later=["model.a[0]"])


@pytest.mark.parametrize(
    "teacher, message",
    [
        (L(FeatureTeacher)(backbone="torchvision/resnet18"), "a text or True or False or None"),
        (L(Teacher)(model="configs/demo/teacher.py"), "a text or None"),
    ],
)
def test_a_teacher_without_weights_is_refused_before_training(teacher, message):
    cfg = load_config("configs/demo/distill.py", ["train.device=cpu"])
    cfg.model.teacher = teacher
    with pytest.raises(ValueError, match=rf"model\.teacher\.weights: expected {message}, found no"):
        check_config(cfg)


def test_templates_in_other_sections_need_not_be_complete():
    cfg = load_config("configs/demo/student.py", ["train.device=cpu"])
    cfg.dataloader, cfg.template = {}, L(Needs)(count=1)
    check_config(cfg)
