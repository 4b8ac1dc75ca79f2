"""A hint for a threshold that hardly any detection reaches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["threshold_hint"]


def threshold_hint(best_scores: Sequence[float], threshold: float) -> str:
    """A line with a threshold that most images reach; "" if most of them reach it already.

    Args:
        best_scores: the highest score of each image, 0 for an image without detections.
        threshold: least score of a detection.
    """
    without = sum(score < threshold for score in best_scores)
    if not best_scores or 2 * without < len(best_scores):
        return ""
    highest = max(score for score in best_scores if score < threshold)
    line = (
        f"{without} of {len(best_scores)} images have no detection with a score of at least "
        f"{threshold:g}. The highest score there is {highest:.2g}"
    )
    # Of the images, more than half have a score of at least this.
    lower = math.floor(100 * statistics.median_low(best_scores)) / 100
    return f"{line}; try --threshold {lower:g}." if lower else f"{line}."
