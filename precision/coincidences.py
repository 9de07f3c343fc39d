"""Which rounding errors are not independent, because the same numbers are rounded: ties among exponents."""

from __future__ import annotations

import torch
from torch import Tensor

UNITS = 2.0**-22
"""Exponents that are as close as this, relatively or, below 1, absolutely, may round alike, and so may exp of them."""


def coincidences(x: Tensor, pieces: int = 1) -> Tensor:
    """(N, n) how many entries of its row each entry is close to, itself included.

    With errors e_i of proxies b_i^2, equal at worst where they are close and independent elsewhere, the proxy of their
    sum is at most sum_ij b_i b_j over close pairs, and that at most sum_i k_i b_i^2: the arithmetic mean. Of a row that
    comes in several `pieces` every entry may be close to as many of each.
    """
    ordered = x.sort(1).values.contiguous()
    window = 2 * UNITS * x.abs().clamp(min=1)  # twice: a window on one side only would not be symmetric
    below = torch.searchsorted(ordered, (x - window).contiguous())
    above = torch.searchsorted(ordered, (x + window).contiguous(), right=True)
    return torch.where(x.isfinite(), pieces * (above - below), 1).double()
