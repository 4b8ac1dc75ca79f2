"""The extra pyramid levels P6 and P7 as the released ATSS, GFL and DDOD compute them."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["TopBlock"]


class TopBlock(nn.Module):
    """A `top_block` of Detectron2's `FPN` that computes P6 from P5, and P7 from P6.

    Both levels are 3x3 convolutions with stride 2. Detectron2's `LastLevelP6P7` applies a ReLU
    before P7; this block does not, as in the released ATSS, GFL and DDOD.
    """

    num_levels = 2

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "p5"):
        """
        Args:
            in_channels: channels of `in_feature`.
            out_channels: channels of the pyramid.
            in_feature: name of the level that P6 is computed from.
        """
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:  # always true here, but PyTorch's types do not say so
                nn.init.zeros_(conv.bias)

    def forward(self, p5: Tensor) -> list[Tensor]:
        """(N, C, H, W) to P6 (N, C, H / 2, W / 2) and P7 (N, C, H / 4, W / 4), rounded up."""
        p6 = self.p6(p5)
        return [p6, self.p7(p6)]
