"""What `differences` names, and what it passes over."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from omegaconf import OmegaConf
from torch import nn

from d2kd.export.structure import differences, to_plain


class Part(nn.Module):
    def __init__(self, **fields):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.layers = [self.conv]  # as FPN and ResNet keep a list of their children
        for key, value in fields.items():
            setattr(self, key, value)


def matcher(low: float) -> Matcher:
    return Matcher([low, 0.5], [0, -1, 1])


def test_weights_and_kinds_of_lists_do_not_count():
    ours = Part(levels=("p3", "p4"), thresholds={"test": [0.5, 1]}, matcher=matcher(0.4))
    lists = OmegaConf.create({"levels": ["p3", "p4"], "thresholds": {"test": [0.5, 1.0]}})
    theirs = Part(levels=lists.levels, thresholds=lists.thresholds, matcher=matcher(0.4))
    assert list(differences(ours, theirs)) == []
    assert to_plain(lists) == {"levels": ["p3", "p4"], "thresholds": {"test": [0.5, 1.0]}}


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        (dict(top=100), dict(top=50), "top is 100, and becomes 50"),
        (dict(top=100), {}, "top is 100, and becomes None"),
        ({}, dict(top=100), "top is None, and becomes 100"),
        (dict(near=0.5), dict(near=0.50001), "near is 0.5, and becomes 0.50001"),
        (dict(levels=["p3"]), dict(levels=["p3", "p4"]), "levels is ['p3'], and becomes ['p3', "),
        (dict(matcher=matcher(0.4)), dict(matcher=matcher(0.3)), "matcher is {'thresholds': [-inf"),
        (dict(extra=nn.ReLU()), {}, "extra (ReLU) is lost"),
        ({}, dict(extra=nn.ReLU()), "extra (ReLU) is added"),
        (dict(extra=nn.ReLU()), dict(extra=nn.GELU()), "extra is ReLU, and becomes GELU"),
        (dict(conv=nn.Conv2d(3, 4, 3)), {}, "conv.out_channels is 4, and becomes 8"),
        (
            dict(scale=nn.Parameter(torch.ones(4))),
            dict(scale=nn.Parameter(torch.ones(5))),
            "scale is [4], and becomes [5]",
        ),
    ],
)
def test_a_difference_is_named(ours, theirs, found):
    assert next(differences(Part(**ours), Part(**theirs))).startswith(found)


def test_ignored_attributes():
    assert list(differences(Part(top=1), Part(top=2), ignore=["top"])) == []


def test_buffers_that_no_checkpoint_has():
    def anchors(size: float) -> nn.Module:
        return DefaultAnchorGenerator(sizes=[[size]], aspect_ratios=[1.0], strides=[8])

    assert list(differences(anchors(32.0), anchors(32.000001))) == []
    (found,) = differences(anchors(32.0), anchors(33.0))
    assert found == (
        "cell_anchors.0 is [-16.0, -16.0, 16.0, 16.0], and becomes [-16.5, -16.5, 16.5, 16.5]"
    )
    # The statistics of a norm are in every checkpoint.
    ours, theirs = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    theirs.running_mean.fill_(3)
    assert list(differences(ours, theirs)) == []
