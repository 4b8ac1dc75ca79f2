"""The uncertainty stage of UET: Monte Carlo dropout on the teacher's maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["MCDropout"]

_TOGETHER = 8  # samples that one random number decides


def outcomes(rates: Sequence[float]) -> Tensor:
    """What the samples sum to, for each of 2^16 equally likely draws.

    Args:
        rates: of n samples, at most 16.

    Returns:
        (2, 2^16), sum_i m_i / (1 - p_i) and the sum of its squares, sorted by which samples drop.
    """
    p = torch.tensor(rates, dtype=torch.float64)
    kept = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * len(rates))
    kept = kept.view(-1, len(rates))  # (2^n, n)
    chance = torch.where(kept == 1, 1 - p, p).prod(1)
    ends = (chance.cumsum(0) * 2**16).round().long()
    values = torch.stack([(kept / (1 - p)).sum(1), (kept / (1 - p).square()).sum(1)])
    return values.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)), 1).float()


def random_index(size: Sequence[int], device: torch.device) -> Tensor:
    """As many numbers in [0, 2^16) as a tensor of this size has, int32; four of a random one."""
    count = math.prod(size)
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    return bits.view(torch.int16)[:count].int().add_(2**15)


class MCDropout(nn.Module):
    """Teacher map -> teacher map with Monte Carlo dropout (UET, arXiv 2406.06999).

    U = (1/n) sum_i Drop_{p_i}(F) is the mean of n dropped-out copies of the teacher's map F, and
    the target is U + F. Inverted dropout multiplies by m_i / (1 - p_i), so that U = F * M with one
    multiplier map M = (1/n) sum_i m_i / (1 - p_i): no copy of F is ever made. M takes 2^n values:
    one random number says which, with probabilities rounded to multiples of 2^-16.

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
        parts = [self.rates[i : i + _TOGETHER] for i in range(0, len(self.rates), _TOGETHER)]
        # Not a buffer, which DDP would send around; it follows the maps.
        self._outcomes = [outcomes(rates) for rates in parts]

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
        self._outcomes = [table.to(device) for table in self._outcomes]
        moments = [torch.zeros(size, device=device) for _ in range(1 + second)]
        for table in self._outcomes:
            index = random_index(size, device)
            for moment, sums in zip(moments, table, strict=False):
                moment += sums.index_select(0, index).view(size)
        return tuple(moment.div_(len(self.rates)) for moment in moments)

    def forward(self, features: Tensor) -> Tensor:
        target = features * self.multiplier(features.shape, features.device).add_(1)
        return target / 2 if self.combine == "mean" else target
