"""Random values in a config: each passes, or is refused with its field's name, and nothing hangs.

What passes is compared with conditions that are written down here, independently of d2kd.
"""

import copy
import math
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from d2kd import model_zoo
from d2kd.checks import check_train
from d2kd.config import check_config, load_config
from d2kd.plain_errors import describe_error

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LONG = settings(QUICK, max_examples=500)

TRICKY = ["no", "off", "true", "4e0", "1_000", "", " ", "nan", "null", "cuda", "cpu:0", "0x10", "١"]
VALUES = st.one_of(
    st.sampled_from(TRICKY),
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 5),
    st.floats(),
    st.text(max_size=8).filter(lambda text: "$" not in text),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from("ab"), st.integers(), max_size=1),
)


def whole(least):
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= least


def number(low, high=math.inf):
    return lambda x: (
        isinstance(x, (int, float))
        and not isinstance(x, bool)
        and math.isfinite(float(x))
        and low <= x <= high
    )


def flag(x):
    return isinstance(x, bool)


TRAIN = {
    "max_iter": whole(1),
    "accumulate": whole(1),
    "log_period": whole(1),
    "eval_period": whole(0),
    "seed": lambda x: whole(-math.inf)(x) and x < 2**32,  # what numpy takes
    "clip_grad_norm": number(0),
    "output_dir": lambda x: isinstance(x, str) and x != "",
    "init_checkpoint": lambda x: x is None or isinstance(x, str),
    "amp.enabled": flag,
    "amp.dtype": lambda x: x in ("float16", "bfloat16"),
    "checkpointer.period": whole(1),
    "checkpointer.max_to_keep": lambda x: x is None or whole(1)(x),
    "teacher_check.images": whole(0),
    "teacher_check.min_ap": number(0, 100),
    "ddp.find_unused_parameters": flag,
    "pictures.period": whole(0),
    "pictures.images": whole(1),
    "pictures.threshold": number(0, 1),
    "writers.wandb": lambda x: x is None or isinstance(x, dict),
}


def put(cfg: DictConfig, field: str, value) -> None:
    parent, _, name = field.rpartition(".")
    section = OmegaConf.select(cfg, parent) if parent else cfg
    section[name] = value


def huge(value) -> bool:
    """Whether no float can hold an integer; what number() says of it is an error."""
    with suppress(OverflowError, TypeError, ValueError):
        float(value)
        return False
    return isinstance(value, int)


def check_a_value_of_train(field, value) -> None:
    train = copy.deepcopy(_defaults())
    put(train, field, value)
    if huge(value):
        return
    if TRAIN[field](value):
        check_train(train)
    else:
        with pytest.raises(ValueError) as error:
            check_train(train)
        assert f"train.{field}" in str(error.value) and "expected" in str(error.value)


def _defaults() -> DictConfig:
    if not _CACHE:
        _CACHE["train"] = model_zoo.get_config("common/train.py").train
        _CACHE["cfg"] = load_config("configs/demo/distill.py", ["train.device=cpu"])
        _CACHE["cfg"].dataloader.test = {}  # its images are not looked at
        _CACHE["cfg"].dataloader.train.dataset = {}
        _CACHE["cfg"].dataloader.evaluator = {}
    return _CACHE["train"]


_CACHE: dict[str, DictConfig] = {}


@QUICK
@given(field=st.sampled_from(sorted(TRAIN)), value=VALUES)
def test_values_of_train(field, value):
    check_a_value_of_train(field, value)


@pytest.mark.slow
@LONG
@given(field=st.sampled_from(sorted(TRAIN)), value=VALUES)
def test_many_values_of_train(field, value):
    check_a_value_of_train(field, value)


def fields_of(cfg, path="") -> list[str]:
    found = []
    for key in map(str, cfg):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, DictConfig):
            found += fields_of(value, f"{path}{key}.")
        elif key != "_target_":
            found.append(path + key)
    return found


def check_a_value_of_a_distiller(data) -> None:
    _defaults()
    cfg = copy.deepcopy(_CACHE["cfg"])
    field = data.draw(st.sampled_from(fields_of(cfg)))
    value = data.draw(VALUES)
    put(cfg, field, value)
    try:
        check_config(cfg)
    except ValueError as error:
        assert describe_error(error) is not None, error
        # A schedule of wrong values may only be found as a whole.
        assert field.rpartition(".")[2] in str(error) or field.startswith("lr_multiplier"), error


@QUICK
@given(st.data())
def test_values_of_any_field(data):
    check_a_value_of_a_distiller(data)


@pytest.mark.slow
@LONG
@given(st.data())
def test_many_values_of_any_field(data):
    check_a_value_of_a_distiller(data)


OVERRIDES = st.one_of(
    st.text(max_size=20),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(
            ["train.max_iter", "train.amp.enabled", "model", "train.", "x.y", "+", "~"]
        ),
        st.sampled_from(["=", "==", "", " = "]),
        st.one_of(st.sampled_from([*TRICKY, "[1", "{a:1}", "1,2", "'"]), st.text(max_size=10)),
    ),
)


def check_an_override(override) -> None:
    try:
        load_config("configs/demo/student.py", [override])
    except ValueError as error:
        assert describe_error(error) is not None, error


@settings(QUICK, max_examples=30)
@given(OVERRIDES)
def test_overrides(override):
    check_an_override(override)


@pytest.mark.slow
@LONG
@given(OVERRIDES)
def test_many_overrides(override):
    check_an_override(override)
