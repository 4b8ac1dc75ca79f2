"""When a lower threshold is proposed, and which."""

import re

import pytest

from d2kd.tools.few_detections import threshold_hint


@pytest.mark.parametrize(
    ("scores", "hint"),
    [
        ([0.9, 0.8, 0.1], ""),  # most images have a detection
        ([], ""),
        (
            [0.9, 0.128],
            "^1 of 2 images .* 0.3. The highest score there is 0.13; try --threshold 0.12.$",
        ),
        ([0.2, 0.25, 0.05], "^3 of 3 images .* highest score there is 0.25; try --threshold 0.2.$"),
        ([0.0, 0.004], "^2 of 2 images .* The highest score there is 0.004.$"),
    ],
)
def test_the_threshold_is_one_that_most_images_reach(scores, hint):
    assert re.search(hint or "^$", threshold_hint(scores, 0.3))
