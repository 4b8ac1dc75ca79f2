"""The uncertainty stage of UET: Monte Carlo dropout on the teacher's maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..values import check_choice, is_number

__all__ = ["MCDropout"]

_PER_NUMBER = 8  # how many samples one random number decides


def outcomes(rates: Sequence[float]) -> Tensor:
    """The sum over the samples, for each of 2^16 equally likely draws.

    Args:
        rates: dropout rates p_i of n samples, n <= 16.

    Returns:
        (2, 2^16): sum_i m_i / (1 - p_i), and sum_i (m_i / (1 - p_i))^2. m_i is 0 if sample i drops
        the value and 1 otherwise. The draws are sorted by which samples drop.
    """
    p = torch.tensor(rates, dtype=torch.float64)
    kept = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * len(rates))
    kept = kept.view(-1, len(rates))  # (2^n, n)
    chance = torch.where(kept == 1, 1 - p, p).prod(1)
    ends = (chance.cumsum(0) * 2**16).round().long()
    values = torch.stack([(kept / (1 - p)).sum(1), (kept / (1 - p).square()).sum(1)])
    return values.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)), 1).float()


def random_index(size: Sequence[int], device: torch.device) -> Tensor:
    """int32 numbers in [0, 2^16), one for each value of a tensor of this size. Four of them come
    from one 64-bit random number."""
    count = math.prod(size)
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    return bits.view(torch.int16)[:count].int().add_(2**15)


class MCDropout(nn.Module):
    """Change the teacher's map by Monte Carlo dropout (UET, arXiv 2406.06999).

    U = (1/n) sum_i Drop_{p_i}(F) is the mean of n dropped-out copies of the teacher's map F. The
    target is U + F. Inverted dropout multiplies each value by m_i / (1 - p_i). So U = F * M with a
    single multiplier map M = (1/n) sum_i m_i / (1 - p_i), and no copy of F is made. A value of M is
    one of 2^n numbers. One random number selects it, with probabilities rounded to multiples of
    2^-16.

    There is no official code. Several sources give n = 5 and the sum U + F. The increasing rates
    have one source, which can also be read as one common rate. Inferred: dropout of single values,
    on the maps that the method distills, with new masks at every step. Ours: `combine="mean"`.
    Since E[U + F] = 2 F, it keeps the scale for which the weights of the base methods were
    published.

    Args:
        rates: dropout rate of each sample, in [0, 1). Their number is n.
        combine: "sum" for U + F, "mean" for (U + F) / 2.
        granularity: "element" drops single values, "channel" drops whole channels of an image.

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
        listed = isinstance(rates, Iterable) and not isinstance(rates, (str, bytes))
        if not listed or not all(is_number(p) and 0 <= p < 1 for p in rates):
            raise ValueError(
                f"MCDropout.rates: expected a list of rates in [0, 1), one for each sample, found "
                f"{rates}"
            )
        self.rates = tuple(float(p) for p in rates)
        self.combine = check_choice("MCDropout.combine", combine, ("sum", "mean"))
        self.granularity = check_choice(
            "MCDropout.granularity", granularity, ("element", "channel")
        )
        parts = [self.rates[i : i + _PER_NUMBER] for i in range(0, len(self.rates), _PER_NUMBER)]
        # Not a buffer, which DDP would synchronize. The tables move to the device of the maps.
        self._outcomes = [outcomes(rates) for rates in parts]

    def extra_repr(self) -> str:
        return f"rates={self.rates}, combine={self.combine}, granularity={self.granularity}"

    def multiplier(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Draw M; see the class.

        Args:
            shape: (N, C, H, W) of the teacher's map.

        Returns:
            (N, C, H, W), or (N, C, 1, 1) for whole channels; 1 where there are no samples.
        """
        return self._moments(shape, device)[0]

    def uncertainty(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """U and the variance of the n samples, for pictures. The loss does not use the variance.

        Args:
            features: (N, C, H, W), the teacher's map F.

        Returns:
            mean and population variance over one draw of the samples Drop_{p_i}(F), both
            (N, C, H, W).
        """
        mean, square = self._moments(features.shape, features.device, second=True)
        # Rounding can make the variance negative where all samples agree.
        variance = (square - mean.square()).clamp(min=0)
        return features * mean, features.square() * variance

    def _moments(self, shape: torch.Size, device: torch.device, second: bool = False) -> tuple:
        """Means over the samples of m / (1 - p) and, with `second`, of its square."""
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
