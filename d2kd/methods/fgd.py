"""Focal and Global Distillation (FGD, CVPR 2022, arXiv 2111.11837)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..targets import Targets
from ..values import check_coefficients, check_number
from .base import FeatureMethod, LevelPair
from .kernels.attention import softmax_attention
from .kernels.fgd import pair_sums

__all__ = ["FGD", "GlobalContext", "attention", "box_masks"]


class FGD(FeatureMethod):
    """Focal distillation weights the maps' difference by the teacher's attention, on foreground and
    background separately. Global distillation compares relations between pixels by context blocks.

    The defaults are the released weights for RetinaNet. The weights for other detectors are in
    `configs/*/*_fgd.py`. There are three deliberate differences from the released code. Boxes are
    mapped to cells by the level's stride in the padded frame; the release divides by the size of
    the unpadded image, so that its masks drift on padded images. Masks are built without a loop
    over boxes. And cells in regions to ignore, and without a box in images that were not annotated
    for all classes, are no background; the release knows neither.

    Args:
        tau: temperature of both attentions, > 0.
        alpha, beta: weights of the squared difference on foreground and on background.
        gamma: weight of the difference between the attentions.
        lambd: weight of the relation term; the paper's lambda.
        shared: see `FeatureMethod`.

    Raises:
        ValueError: `tau` is not positive.
    """

    def __init__(
        self,
        *,
        tau: float = 0.5,
        alpha: float = 1e-3,
        beta: float = 5e-4,
        gamma: float = 5e-4,
        lambd: float = 5e-6,
        **shared,
    ):
        super().__init__(**shared)
        self.tau = check_number("FGD.tau", tau, above=0)
        check_coefficients("FGD", alpha=alpha, beta=beta, gamma=gamma, lambd=lambd)
        self.alpha, self.beta, self.gamma, self.lambd = alpha, beta, gamma, lambd
        self.student_context = nn.ModuleDict()
        self.teacher_context = nn.ModuleDict()

    def setup_level(self, pair: LevelPair) -> None:
        # Both blocks train, as in the released code. Only the teacher network is frozen.
        channels = pair.teacher_shape.channels
        self.student_context[pair.student] = GlobalContext(channels)
        self.teacher_context[pair.student] = GlobalContext(channels)

    def compare(
        self, pair: LevelPair, student: Tensor, teacher: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        foreground, background = box_masks(
            targets.boxes, targets.valid, teacher.shape[-2:], 1 / pair.teacher_shape.stride
        )
        if not targets.complete:
            cells = grid_centers(teacher.shape[-2:], pair.teacher_shape.stride, teacher.device)
            background = background * targets.known(cells).view_as(background)
        return self.terms(pair.student, student, teacher, foreground, background)

    def terms(
        self, level: str, student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor
    ) -> dict[str, Tensor]:
        """The weighted losses of one level, by the equations of the paper.

        "foreground" and "background" are the two parts of L_fea and "attention" is L_at (FGD,
        section 3.1); "relation" is L_global (section 3.2).

        Args:
            level: the student's name of the level.
            student, teacher: (N, C, H, W); R = H * W.
            foreground, background: (N, H, W), from `box_masks`.
        """
        n, r = len(student), foreground[0].numel()
        block_s = cast(GlobalContext, self.student_context[level])
        block_t = cast(GlobalContext, self.teacher_context[level])
        keys = (*block_s.key.parameters(), *block_t.key.parameters())
        sums = pair_sums(student.flatten(2), teacher.flatten(2), self.tau, *keys)
        spatial_s, spatial_t, channel_s, channel_t = (
            softmax_attention(x, self.tau) for x in sums[:4]
        )
        # The weights of the error are the teacher's attention. The student's attention is only
        # compared with it.
        error = sums.error * spatial_t  # (N, R)
        attention_error = (channel_s - channel_t).abs().sum() + (spatial_s - spatial_t).abs().sum()
        # The blocks add v_s to all cells of S and v_t to all cells of T. With v = v_s - v_t,
        # sum (S + v_s - T - v_t)^2 = sum (S - T)^2 + v (2 sum (S - T) + R v).
        v = block_s.transform(sums.context_s) - block_t.transform(sums.context_t)  # (N, C)
        relation = sums.square.sum() + (v * (2 * sums.difference + r * v)).sum()
        return {
            "foreground": self.alpha * (foreground.flatten(1) * error).sum() / n,
            "background": self.beta * (background.flatten(1) * error).sum() / n,
            "attention": self.gamma * attention_error / n,
            "relation": self.lambd * relation / n,
        }


def attention(features: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Spatial and channel attention A^S and A^C (FGD, section 3.1).

    Args:
        features: (N, C, H, W).

    Returns:
        spatial attention (N, H, W), which sums to H*W for each image, and channel attention (N, C),
        which sums to C.
    """
    x = features.flatten(2).abs()
    spatial, channel = softmax_attention(x.mean(1), tau), softmax_attention(x.mean(2), tau)
    return spatial.view_as(features[:, 0]), channel


@torch.no_grad()
def box_masks(
    boxes: Tensor,
    valid: Tensor,
    size: Sequence[int],
    cells_per_pixel: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Foreground and background masks M, multiplied by their scale masks S (FGD, section 3.1).

    Each cell of a box weighs 1 / (number of cells of the box). Where boxes overlap, the smallest
    box wins. The background cells of an image share a total weight of 1. The upper left corner of a
    box is rounded down and the lower right corner is rounded up, both inclusive, as released. So no
    box is smaller than a cell. The number of cells counts the whole box, even if it leaves the
    image.

    Args:
        boxes: (N, G, 4) x1y1x2y2 in pixels.
        valid: (N, G) bool.
        size: H and W of the level, in cells.
        cells_per_pixel: 1 / stride; or a tensor (N, 2), along x and y, for each image.

    Returns:
        foreground and background masks, (N, H, W) each.
    """
    n, g = valid.shape
    h, w = size
    scale = cells_per_pixel[:, None] if torch.is_tensor(cells_per_pixel) else cells_per_pixel
    low, high = (boxes[..., :2] * scale).floor(), (boxes[..., 2:] * scale).ceil()
    value = valid / (high - low + 1).clamp(min=1).prod(-1)
    x, y = (torch.arange(k, device=boxes.device) for k in (w, h))
    columns = (x >= low[..., 0, None]) & (x <= high[..., 0, None])  # (N, G, W)
    rows = (y >= low[..., 1, None]) & (y <= high[..., 1, None])  # (N, G, H)
    rows, columns = rows * value[..., None], columns.to(value.dtype)
    foreground = boxes.new_zeros(n, h, w)
    # The number of boxes per step bounds the memory. On a CPU, a step fits into the cache.
    step = max((2**19 if boxes.is_cpu else 2**24) // (n * h * w), 1)
    for i in range(0, g, step):
        covered = rows[:, i : i + step, :, None] * columns[:, i : i + step, None, :]
        foreground = torch.maximum(foreground, covered.amax(1))
    background = (foreground == 0).to(foreground.dtype)
    background = background / background.sum((1, 2), keepdim=True).clamp(min=1)
    return foreground, background


def grid_centers(size: Sequence[int], stride: int, device: torch.device) -> Tensor:
    """(H * W, 2), x and y in pixels of the centers of a level's cells, row by row."""
    y, x = (stride * (torch.arange(n, device=device) + 0.5) for n in size)
    return torch.cartesian_prod(y, x).flip(1)


class GlobalContext(nn.Module):
    """R(F) = F + W2 ReLU(LN(W1 sum_j softmax_j(key(F))_j F_j)) (FGD, section 3.2).

    This is a GCNet block (arXiv 1904.11492) with linear layers over a cell's channels in place of
    1x1 convolutions. W2 starts at zero, so that R is the identity at first.
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 2, 1)
        self.key = nn.Linear(channels, 1)
        first, last = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.transform = nn.Sequential(first, nn.LayerNorm(hidden), nn.ReLU(inplace=True), last)
        nn.init.kaiming_normal_(self.key.weight, mode="fan_in")
        nn.init.zeros_(self.key.bias)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """
        Args:
            features: (N, C, H, W).

        Returns:
            (N, C, H, W).
        """
        cells = features.flatten(2).mT  # (N, R, C)
        context = (self.key(cells).softmax(1) * cells).sum(1)
        return features + self.transform(context)[..., None, None]
