"""Targets drawn from a head's own softmax, so that the head is a calibrated model of its text."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices into the last dimension of `weights`, drawn in proportion to them: one for each number in [0, 1).

    Inverts the cumulative sum; other ways draw a number for each weight.
    """
    total = weights.cumsum(-1)
    return torch.searchsorted(total, uniform * total[..., -1:]).clamp(max=weights.shape[-1] - 1)


def draw_targets(e: Tensor, c: Tensor, uniform: Tensor, odds: Tensor | None = None) -> Tensor:
    """(N,) int64 drawn with probabilities proportional to ``softmax(E C^T) * odds``, E (N, D), C (V, D), odds (V,).

    `uniform` (N,) are float64 numbers in [0, 1). All in float64, about 2^25 logits at a time: products and sums on a
    GPU are not the same from run to run, and in float32 that moved targets.
    """
    wide = c.double().T
    step = max(1, 2**25 // len(c))
    targets = []
    for rows, u in zip(e.split(step), uniform.split(step), strict=True):
        p = torch.softmax(rows.double() @ wide, dim=1)
        targets.append(draw(p if odds is None else p * odds, u[:, None])[:, 0])
    return torch.cat(targets)
