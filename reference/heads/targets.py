"""Targets drawn from a head's own softmax, so that the head is a calibrated model of its text."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_targets(e: Tensor, c: Tensor, generator: torch.Generator, odds: Tensor | None = None) -> Tensor:
    """(N,) int64 drawn with probabilities proportional to ``softmax(E C^T) * odds``, E (N, D), C (V, D), odds (V,).

    Inverts the cumulative sum, one uniform number a row: the other ways draw N V numbers. Logits are float32, about
    2^26 of them at a time.
    """
    n, v = len(e), len(c)
    u = torch.rand(n, 1, generator=generator, device=e.device, dtype=torch.float64)
    wide = c.float().T
    targets = []
    for rows, uniform in zip(e.split(max(1, 2**26 // v)), u.split(max(1, 2**26 // v)), strict=True):
        p = torch.softmax(rows.float() @ wide, dim=1)
        total = (p if odds is None else p * odds).cumsum(1, dtype=torch.float64)  # CUDA adds in any order
        targets.append(torch.searchsorted(total, uniform * total[:, -1:])[:, 0].clamp(max=v - 1))
    return torch.cat(targets)
