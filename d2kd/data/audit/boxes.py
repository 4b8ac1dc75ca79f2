"""Find boxes that are no boxes.

Shapes: B boxes of all images of a set.
"""

from __future__ import annotations

import numpy as np

from .contents import Contents
from .kinds import Defect

__all__ = ["find_box_defects"]

BORDER = 0.1  # pixels that a box may extend beyond its image uncounted: less is rounding
MIN_SIDE = 1e-5  # in pixels; Detectron2's mapper leaves out boxes with a smaller side
FAR = 0.05  # share of the image's side by which a box reaches "far" beyond the border
# When are boxes x1, y1, x2, y2? If all of them can be (x2 > x1, y2 > y1, inside the image), which
# only large boxes near the upper left corner could be by chance, and if this share of them reaches
# far beyond the border otherwise. CrowdHuman's boxes do the second, but never all do the first.
FAR_SHARE = 0.2
MIN_BOXES = 10  # fewer boxes are no proof
RELATIVE_SHARE = 0.9  # of the boxes, within the first pixel of images of at least MIN_IMAGE pixels
MIN_IMAGE = 8


def find_box_defects(contents: Contents) -> list[Defect]:
    """Count boxes that are not finite, empty, outside, cut, tiny, or in another format.

    Crowds are looked at for numbers that are not finite only: no detector learns them, and they
    may be sloppy. Where the size of an image is not known, only what needs no size is counted.
    """
    defects: list[Defect] = []
    boxes = contents.boxes
    finite = np.isfinite(boxes).all(1)

    def add(kind: str, wrong: np.ndarray, total: int) -> None:
        if wrong.any():
            first = contents.name_box(int(np.flatnonzero(wrong)[0]))
            defects.append(Defect(kind, int(wrong.sum()), total, first))

    add("not_finite", ~finite, len(boxes))
    use = finite & ~contents.crowds
    total = int(use.sum())
    if not total:
        return defects
    rows = np.where(finite[:, None], boxes, 0.0)
    sizes = contents.sizes[contents.owners].astype(float)
    sized = (sizes > 0).all(1)
    low, sides = rows[:, :2], rows[:, 2:]
    high = low + sides
    empty = use & (sides <= 0).any(1)
    solid = use & ~empty
    cut = np.minimum(high, sizes) - np.maximum(low, 0)  # sides inside of the image
    outside = solid & sized & (cut <= MIN_SIDE).any(1)
    inside = solid & ~outside
    over = np.maximum(-low, high - sizes).max(1)
    add("empty", empty, total)
    add("outside", outside, total)
    add("border", inside & sized & (over > BORDER), total)
    add("tiny", inside & (sides <= 1).any(1), total)
    if not inside.any():
        add("no_usable", empty | outside, total)
    _add_formats(contents, add, solid & sized, low, sides, sizes)
    return defects


def _add_formats(contents, add, solid, low, sides, sizes) -> None:
    """Find whole sets of boxes in another format than pixels as x, y, width, height."""
    high = low + sides
    large = solid & (sizes >= MIN_IMAGE).all(1)
    first_pixel = large & (low >= 0).all(1) & (high <= 1.5).all(1) & (sides <= 1).all(1)
    # A set of few boxes of a whole pixel may be what it says.
    proof = solid.sum() >= MIN_BOXES or 2 * (first_pixel & (sides < 1).any(1)).sum() > solid.sum()
    if large.any() and proof and first_pixel.sum() >= RELATIVE_SHARE * solid.sum():
        add("relative", first_pixel, int(solid.sum()))
        return
    # Sets may be mixed: each folder of images is judged for itself.
    folders = np.unique([f.rpartition("/")[0] for f in contents.files], return_inverse=True)[1]
    if not len(folders):
        return
    groups = folders[contents.owners]
    can_be_corners = (sides > low).all(1) & (low >= -1).all(1) & (sides <= sizes + 1).all(1)
    far = (high - sizes > np.maximum(FAR * sizes, 2)).any(1)
    count = np.bincount(groups[solid], minlength=groups.max(initial=0) + 1)
    fits = np.bincount(groups[solid & can_be_corners], minlength=len(count))
    reach = np.bincount(groups[solid & far], minlength=len(count))
    corners = (count > 0) & (fits == count) & (reach >= np.maximum(FAR_SHARE * count, 1))
    for kind, chosen in (("corners", count >= MIN_BOXES), ("few_corners", count < MIN_BOXES)):
        add(kind, solid & far & (corners & chosen)[groups], int(solid.sum()))
