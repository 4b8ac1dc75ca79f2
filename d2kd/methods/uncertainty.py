"""The uncertainty stage of UET: Monte Carlo dropout on the teacher's maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["MCDropout"]


class MCDropout(nn.Module):
    """Teacher map -> teacher map with Monte Carlo dropout (UET, arXiv 2406.06999).

    U = (1/n) sum_i Drop_{p_i}(F) is the mean of n dropped-out copies of the teacher's map F, and
    the target is U + F. Inverted dropout multiplies by m_i / (1 - p_i), so that U = F * M with one
    multiplier map M = (1/n) sum_i m_i / (1 - p_i): no copy of F is ever made.

    There is no official code. n = 5 and the sum U + F are well attested. The ramp of rates has one
    source and another reading (one common rate); element-wise dropout on the maps that the method
    distils, with fresh masks at every step, is inferred. E[U + F] = 2 F: `combine="mean"` halves
    it, which keeps the scale that published weights of the base methods assume; it is ours.

    Args:
        rates: dropout rate of each sample, in [0, 1); their number is n.
        combine: "sum" for U + F, "mean" for (U + F) / 2.
        granularity: "element" drops values one by one, "channel" whole channels of an image.

    Raises:
        ValueError: a rate outside [0, 1), or an unknown word.
    """

    def __init__(
        self,
        rates: Sequence[float] = (0.15, 0.20, 0.25, 0.30, 0.35),
        combine: str = "sum",
        granularity: str = "element",
    ):
        super().__init__()
        if isinstance(rates, (int, float)) or not all(0 <= p < 1 for p in rates):
            raise ValueError(
                f"MCDropout.rates: expected a list of rates in [0, 1), one a sample, found {rates}"
            )
        self.rates = tuple(float(p) for p in rates)
        if combine not in ("sum", "mean"):
            raise ValueError(f"MCDropout.combine: expected sum or mean, found {combine!r}")
        if granularity not in ("element", "channel"):
            raise ValueError(
                f"MCDropout.granularity: expected element or channel, found {granularity!r}"
            )
        self.combine = combine
        self.granularity = granularity

    def extra_repr(self) -> str:
        return f"rates={self.rates}, combine={self.combine}, granularity={self.granularity}"

    def multiplier(self, shape: torch.Size, device: torch.device) -> Tensor:
        """M of the class's docstring, one draw.

        Args:
            shape: (N, C, H, W) of the teacher's map.

        Returns:
            (N, C, H, W), or (N, C, 1, 1) for whole channels; 1 where there are no samples.
        """
        return self._moments(shape, device)[0]

    def uncertainty(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """U and the variance of the n samples about it, for pictures: the loss uses no variance.

        Args:
            features: (N, C, H, W), the teacher's map F.

        Returns:
            mean and (population) variance over one draw of the samples Drop_{p_i}(F), both
            (N, C, H, W).
        """
        mean, square = self._moments(features.shape, features.device, second=True)
        # Rounding may leave a little less than nothing where all samples agree.
        variance = (square - mean.square()).clamp(min=0)
        return features * mean, features.square() * variance

    def _moments(self, shape: torch.Size, device: torch.device, second: bool = False) -> tuple:
        """Means over the samples of m / (1 - p) and, if asked, of its square."""
        size = shape if self.granularity == "element" else (*shape[:2], 1, 1)
        if not self.rates:
            return torch.ones(size, device=device), torch.ones(size, device=device)
        mean = torch.zeros(size, device=device)
        square = torch.zeros(size, device=device) if second else None
        mask = torch.empty(size, device=device)
        for p in self.rates:
            mask.bernoulli_(1 - p)
            mean.add_(mask, alpha=1 / (1 - p))
            if second:  # a mask is its own square
                square.add_(mask, alpha=1 / (1 - p) ** 2)
        n = len(self.rates)
        return mean.div_(n), square.div_(n) if second else None

    def forward(self, features: Tensor) -> Tensor:
        target = features * self.multiplier(features.shape, features.device).add_(1)
        return target / 2 if self.combine == "mean" else target
