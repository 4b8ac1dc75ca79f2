"""What runs inside the block does not change the random numbers after it."""

import random

import numpy as np
import pytest
import torch

from d2kd.random_state import keep_random_state


def draws() -> list[float]:
    return [random.random(), np.random.rand(), torch.rand(1).item()]


def seed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def test_numbers_after_the_block_are_those_without_it():
    seed()
    expected = draws()
    seed()
    with keep_random_state():
        assert draws() == expected
        draws()
    assert draws() == expected


def test_an_error_in_the_block_changes_nothing_either():
    seed()
    expected = draws()
    seed()
    with pytest.raises(KeyError), keep_random_state():
        draws()
        raise KeyError
    assert draws() == expected
