"""Fingerprints are in the keys of raw caches, so they must not change between versions of d2kd."""

import numpy as np
import torch
from torch import nn

from d2kd.pseudo.fingerprint import fingerprint, plain


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.strides, self.thresh, self.name = [8, 16], 0.5, "p3"
        self.anchors = np.arange(4.0)
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.register_buffer("mean", torch.tensor([1, 2]))


def test_a_detector_has_the_fingerprint_that_it_had_before_version_0_1():
    # Computed by the code before thresholds were renamed. With another value, users would have to
    # label everything again.
    expected = "e6e4f973e3de16b67b6098d0a9a270edaddeac0ecc6cb368f9cbab51290393ad"
    assert fingerprint(Tiny()) == expected


def test_settings_become_plain_json():
    # The digest is `printf '\0\0\300\077' | sha256sum`, the bytes of 1.5 in float32.
    digest = "c0e336a5f371ef22cd534e094269f2c1a9635cd080b71ffa671086832d3b60b7"
    described = plain(dict(a=(1, 2), b={3}, c=2.5, d=torch.tensor([1.5])))
    assert described == {"a": [1, 2], "b": ["3"], "c": 2.5, "d": ["torch.float32", [1], digest]}
