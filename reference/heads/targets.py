"""Targets drawn from a head's own softmax, so that the head is a calibrated model of its text."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_targets(e: Tensor, c: Tensor, generator: torch.Generator, odds: Tensor | None = None) -> Tensor:
    """(N,) int64 drawn with probabilities proportional to ``softmax(E C^T) * odds``, E (N, D), C (V, D), odds (V,).

    Inverts the cumulative sum, one uniform number a row: the other ways draw N V numbers. All in float64, about 2^25
    logits at a time: products and sums on a GPU are not the same from run to run, and in float32 that moved targets.
    """
    n, v = len(e), len(c)
    u = torch.rand(n, 1, generator=generator, device=e.device, dtype=torch.float64)
    wide = c.double().T
    step = max(1, 2**25 // v)
    targets = []
    for rows, uniform in zip(e.split(step), u.split(step), strict=True):
        p = torch.softmax(rows.double() @ wide, dim=1)
        total = (p if odds is None else p * odds).cumsum(1)
        targets.append(torch.searchsorted(total, uniform * total[:, -1:])[:, 0].clamp(max=v - 1))
    return torch.cat(targets)
