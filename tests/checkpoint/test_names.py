import pytest
import torch

from d2kd.checkpoint.names import find_state_dict, remove_prefix

W = {"a.w": torch.zeros(1), "a.b": torch.ones(2)}


@pytest.mark.parametrize(
    "content, place",
    [
        (W, ""),
        ({"model": W, "iteration": 3}, "under 'model'"),
        ({"state_dict": W, "meta": {"epoch": 12}}, "under 'state_dict'"),
        ({"model_state": W, "cfg": "..."}, "under 'model_state'"),
        ({"model": {"state_dict": W}}, "under 'model'.'state_dict'"),
        ({"ema": W, "epoch": 3}, "under 'ema'"),
        ({"model": W, "ema_state": W}, "under 'model'"),  # as Detectron2 does
    ],
)
def test_weights_are_found_in_their_wrapper(content, place):
    assert find_state_dict(content, "file") == (W, place)


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "none in an empty dict"),
        ({"epoch": 3, "args": {}}, r"none in 'epoch' \(int\), 'args' \(dict\)"),
        ({"teacher": W, "student": W}, "several: 'teacher', 'student'"),
        ({"model": {**W, "step": 3}}, "'step' under 'model', a int"),
        ([1, 2], "a list"),
        ({"model": [1]}, r"none in 'model' \(list\)"),
    ],
)
def test_a_file_without_weights_is_an_error_that_says_what_it_has(content, message):
    with pytest.raises(ValueError, match=rf"checkpoint file: expected .* found (a )?{message}"):
        find_state_dict(content, "file")


@pytest.mark.parametrize("prefix", ["module.", "model.", "student.", "_orig_mod.", "module.model."])
def test_a_common_prefix_is_removed(prefix):
    weights = {prefix + k: v for k, v in W.items()}
    assert remove_prefix(weights, W.keys(), "file") == (W, prefix)


def test_names_of_the_model_stay():
    weights = {**W, "module.a.w": W["a.w"]}
    assert remove_prefix(weights, W.keys(), "file") == (weights, "")


def test_names_of_another_model_stay():
    assert remove_prefix({"x.y": W["a.w"]}, W.keys(), "file")[1] == ""


@pytest.mark.parametrize(
    "others", [{f"teacher.{k}": v for k, v in W.items()}, {"queue": W["a.w"]}], ids=str
)
def test_two_models_in_one_file_are_refused_with_the_fix(others):
    weights = {**{f"student.{k}": v for k, v in W.items()}, **others}
    with pytest.raises(
        ValueError, match=r"without the prefix .*'student.' \(2 tensors\).*torch.save"
    ):
        remove_prefix(weights, W.keys(), "file")
