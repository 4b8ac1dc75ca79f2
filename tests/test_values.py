"""Checks of single values. The tables say by hand which values are right."""

import math

import numpy as np
import pytest
import torch

from d2kd.values import (
    check_choice,
    check_coefficients,
    check_device,
    check_flag,
    check_number,
    is_number,
)


@pytest.mark.parametrize("value", [0, 3, -2.5, 1e300, np.float32(1), np.int64(7)])
def test_numbers(value):
    assert is_number(value)


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), math.nan, math.inf, "1", None, [1], 1j, torch.ones(()), 10**400],
)
def test_what_is_no_number(value):
    assert not is_number(value)


@pytest.mark.parametrize(
    "value, limits, message",
    [
        (-1, {}, "x: expected a number >= 0, found -1."),
        (0, dict(above=0), "x: expected a number > 0, found 0."),
        (2, dict(most=1), "x: expected a number >= 0 and <= 1, found 2."),
        (1, dict(below=1), "x: expected a number >= 0 and < 1, found 1."),
        (math.nan, dict(least=None), "x: expected a finite number, found nan."),
        ("abc", dict(least=1, whole=True), "x: expected a whole number >= 1, found 'abc'."),
        (4.0, dict(whole=True), "x: expected a whole number >= 0, found 4.0. Write 4."),
        (4.5, dict(whole=True), "x: expected a whole number >= 0, found 4.5."),
        (True, dict(whole=True), "x: expected a whole number >= 0, found True."),
        (-1, dict(other="None"), "x: expected a number >= 0 or None, found -1."),
    ],
)
def test_numbers_out_of_range(value, limits, message):
    with pytest.raises(ValueError) as error:
        check_number("x", value, **limits)
    assert str(error.value) == message


def test_numbers_in_range_are_returned():
    assert check_number("x", 0) == 0 and check_number("x", 1, most=1) == 1
    assert check_number("x", -5, least=None) == -5 and check_number("x", 3, whole=True) == 3


@pytest.mark.parametrize("value", ["no", "true", 0, 1, None])
def test_flags_are_true_or_false_only(value):
    assert check_flag("x", True) and not check_flag("x", False)
    with pytest.raises(ValueError, match=f"x: expected True or False, found {value!r}"):
        check_flag("x", value)


def test_choices():
    assert check_choice("x", "a", "ab") == "a"
    with pytest.raises(ValueError, match=r"x: expected a or b, found 'c'\."):
        check_choice("x", "c", "ab")
    with pytest.raises(ValueError, match=r"x: expected one of 1, 2, 3, found True\."):
        check_choice("x", True, (1, 2, 3))


def test_coefficients():
    check_coefficients("M", some_positive=True, a=0, b=2.0)
    with pytest.raises(ValueError, match=r"M.b: expected a number >= 0, found -1"):
        check_coefficients("M", a=1, b=-1)
    with pytest.raises(ValueError, match=r"M.a, M.b: expected at least one number > 0"):
        check_coefficients("M", some_positive=True, a=0, b=0.0)


def test_a_device_that_pytorch_does_not_know_is_named_with_its_field():
    with pytest.raises(ValueError, match=r"^device: expected cpu, cuda or cuda:N, found 'foo'"):
        check_device("device", "foo")
    with pytest.raises(ValueError, match=r"^device: expected a device that this PyTorch can use"):
        check_device("device", "xla")
