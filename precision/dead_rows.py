"""Rows of dC that a variant leaves at exactly zero though the truth is not: words that learn nothing from a batch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .background import Background


@dataclass(frozen=True, kw_only=True)
class DeadBucket:
    """Words of neighbouring ranks."""

    first_rank: int  # 1 is the most frequent word
    last_rank: int
    targets: bool  # whether they are targets of the batch; the others never are
    rows: int  # whose true gradient is not zero
    dead: int
    lost: float  # norm of the dead rows' truth / norm of the bucket's truth


@dataclass(frozen=True, kw_only=True)
class DeadRows:
    """Of the whole dC, and by frequency."""

    rows: int
    dead: int
    lost: float  # norm of the dead rows' truth / norm of the truth
    buckets: list[DeadBucket]


def frequency_rank(background: Background) -> Tensor:
    """(V,) words from the most frequent on: by how often they are targets, then by how often the softmax expects
    them."""
    by_expectation = torch.sort(background.expected, descending=True, stable=True).indices
    occurrences = background.occurrences[by_expectation]
    return by_expectation[torch.sort(occurrences, descending=True, stable=True).indices]


def dead_rows(got: Tensor, want: Tensor, background: Background) -> DeadRows:
    """`got` and `want` are dC (V, D). Buckets grow tenfold in rank and end where the targets do."""
    step = max(1, 2**24 // want.shape[1])
    blocks = range(0, len(want), step)
    square = torch.cat([want[start : start + step].square().sum(1) for start in blocks])
    zero = torch.cat([(got[start : start + step] == 0).all(1) for start in blocks])
    live = square > 0
    rank = frequency_rank(background)
    square, live, dead = square[rank], live[rank], (zero & live)[rank]
    seen = int((background.occurrences > 0).sum())
    edges = sorted({0, seen, len(want), *(10**k for k in range(1, 8) if 10**k < len(want))})
    buckets = []
    for first, last in pairwise(edges):
        span = slice(first, last)
        buckets.append(
            DeadBucket(
                first_rank=first + 1,
                last_rank=last,
                targets=last <= seen,
                rows=int(live[span].sum()),
                dead=int(dead[span].sum()),
                lost=_lost(square[span], dead[span]),
            )
        )
    return DeadRows(rows=int(live.sum()), dead=int(dead.sum()), lost=_lost(square, dead), buckets=buckets)


def _lost(square: Tensor, dead: Tensor) -> float:
    total = float(square.sum())
    return (float(square[dead].sum()) / total) ** 0.5 if total else 0.0
