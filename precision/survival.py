"""How many elements use up how much of their budget: the share at or above each ratio of error to bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .measure import quotient, row_blocks

EXPONENTS = [k / 4 for k in range(-64, 9)]
"""log2 of the ratios at which the curve is read: quarters of a factor of two from 2^-16 to 4."""


@dataclass(frozen=True, kw_only=True)
class Survival:
    """A curve that falls from 1; what stands at ratios above 1 is over budget."""

    log2_ratio: list[float]
    share: list[float]  # of the elements whose error / bound is at least that


def survival(got: Tensor, want: Tensor, bound: Tensor) -> Survival:
    """The curve of one output; elements that are not finite on either side count as within budget here."""
    edges = 2.0 ** torch.tensor(EXPONENTS, dtype=torch.float64, device=want.device)
    at_least = torch.zeros(len(edges), dtype=torch.int64, device=want.device)
    for g, w, b in row_blocks(got, want, bound):
        usable = g.isfinite() & w.isfinite()
        ratio = quotient(torch.where(usable, g - w, 0.0).abs(), b)
        place = torch.bucketize(ratio.flatten(), edges, right=True)  # the number of edges that the ratio reaches
        counts = torch.bincount(place, minlength=len(edges) + 1)
        at_least += counts.flip(0).cumsum(0).flip(0)[1:]
    return Survival(log2_ratio=EXPONENTS, share=(at_least.double() / max(want.numel(), 1)).tolist())
