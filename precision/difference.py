"""The rounding error of a difference of two fp32 numbers of which enclosures are known."""

from __future__ import annotations

import torch
from torch import Tensor

from .enclosure import Enclosure
from .formats import FP32


def difference_error(a: Enclosure, b: Enclosure, size: Tensor, off: Tensor, *, is_known: bool) -> Enclosure:
    """Of rn(a - b), from the `size` of the exact difference, which operands are `off` from.

    It is what it is where both numbers are known (`is_known`: and are those that are rounded to nearest), and 0 where
    the difference is no larger than either (Sterbenz; Higham, ASNA, theorem 2.5).
    """
    exact = a.minus(b)
    smaller = torch.minimum(*(torch.minimum(x.low.abs(), x.high.abs()) for x in (a, b)))
    half = torch.where(size + off <= smaller, 0.0, FP32.half_ulp(size + off))
    rounded = exact.rounded().low - exact.low
    known = (exact.low == exact.high) & rounded.isfinite() & is_known
    return Enclosure(torch.where(known, rounded, -half), torch.where(known, rounded, half))
