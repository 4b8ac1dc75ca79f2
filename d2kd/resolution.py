"""Show a detector images at another size than its partner's, and bring its maps back.

Shapes: N images, C channels, H x W cells or pixels. Sizes are (height, width).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from torch import Tensor, nn

from .values import check_number

__all__ = [
    "Size",
    "check_fits_square",
    "check_image_size",
    "fit_into_square",
    "resample",
    "resize_image",
    "shortest_edge_size",
    "square_size",
]

Size = tuple[int, int]


def check_image_size(field: str, value: Any) -> Size | None:
    """The shorter side and the limit of the longer side, in pixels, of a size in a config.

    Args:
        field: name for the message.
        value: such a pair; or the shorter side alone, without a limit of the longer side; or None.

    Raises:
        ValueError: the value is something else.
    """
    if value is None:
        return None
    pair: Any = [value, sys.maxsize] if isinstance(value, (int, float)) else value
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise ValueError(
            f"{field}: expected the shorter side in pixels, or the shorter side and the limit of "
            f"the longer side such as (800, 1333), found {value!r}."
        )
    shortest = check_number(field, pair[0], least=1, whole=True)
    return shortest, check_number(field, pair[1], least=shortest, whole=True)


def shortest_edge_size(size: Size, image_size: Size) -> Size:
    """The size to which Detectron2's ResizeShortestEdge resizes an image.

    Args:
        size: of the image.
        image_size: shorter side and limit of the longer side, in pixels.
    """
    return T.ResizeShortestEdge.get_output_shape(*size, *image_size)


def square_size(model: nn.Module) -> int:
    """Side of the square to which a detector pads its images, in pixels; 0 without one.

    ViTDet's backbones have one (`square_pad`). Detectron2 crops a larger image in silence, or fails
    in `copy_`.
    """
    # Release 0.6 of Detectron2 has no padding_constraints.
    constraints = getattr(getattr(model, "backbone", None), "padding_constraints", {})
    return constraints.get("square_size", 0)


def check_fits_square(model: nn.Module, batched_inputs: Sequence[dict]) -> None:
    """Refuse images that are larger than the square of a detector.

    Args:
        batched_inputs: Detectron2's; "image" is (3, H, W).

    Raises:
        ValueError: an image is larger than the square.
    """
    square = square_size(model)
    for x in batched_inputs if square else ():
        height, width = x["image"].shape[-2:]
        if max(height, width) > square:
            raise ValueError(
                f"{x.get('file_name', 'an image of the batch')}: expected at most {square} x "
                f"{square} pixels, the square of this {type(model).__name__} (square_pad of its "
                f"backbone), found {height} x {width} (height x width). Resize images to at most "
                f"{square} pixels in the mapper's augmentations, for example with "
                f"ResizeShortestEdge(..., max_size={square})."
            )


def fit_into_square(image: Tensor, square: int) -> Tensor:
    """Shrink an image (C, H, W) until its longer side is at most `square` pixels.

    An image that fits is returned unchanged. 0 means no square.
    """
    height, width = image.shape[-2:]
    longest = max(height, width)
    if not square or longest <= square:
        return image
    size = [max(round(side * square / longest), 1) for side in (height, width)]
    return resize_image(image, (size[0], size[1]))


def resize_image(image: Tensor, size: Size) -> Tensor:
    """Resize an image (C, H, W) with an antialiased bilinear filter; the result is float32.

    An image of that size is returned unchanged.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized = F.interpolate(
        image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0]


def resample(maps: Tensor, scales: Sequence[tuple[float, float]], size: Size) -> Tensor:
    """Bring maps of images that were resized to the grid that the original images would have.

    Coordinates are in cells, and the centers of the cells are at .5. The result at (y, x) is the
    map at (y, x) * scale, by bilinear interpolation. For example, with a scale of 2, the first cell
    of the result, at 0.5, is the map at 1, which is halfway between its first two cells. Where the
    map ends, its last cells are repeated. With scales above 2, some of its cells are not used.

    Args:
        maps: (N, C, H, W). The padding is at the bottom right.
        scales: of each image, its height and width after resizing, divided by those before.
        size: rows and columns of the result.

    Returns:
        (N, C, *size), float32.
    """
    rows, columns = size
    # PyTorch's coordinates are -1 at the first edge of a map and 1 at its last edge, so that they
    # are 2 * cells / width - 1, where the centers of the cells are at 0.5, 1.5, ... A point at x of
    # the result then lies at a * (x + 1) - 1 of the map, where a = scale * columns / map_columns.
    # For y, b is the same of the rows.
    map_rows, map_columns = maps.shape[-2:]
    factors = [(x * columns / map_columns, y * rows / map_rows) for y, x in scales]
    theta = torch.tensor([[[a, 0.0, a - 1], [0.0, b, b - 1]] for a, b in factors])
    theta = theta.to(maps.device, non_blocking=True)
    # In half precision, coordinates would be off by parts of a cell.
    with torch.autocast(maps.device.type, enabled=False):
        grid = F.affine_grid(theta, [len(maps), 1, rows, columns], align_corners=False)
        return F.grid_sample(
            maps.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
        )
