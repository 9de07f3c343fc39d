"""Host side of tail=rank1: how what rows lose is spread over the vocabulary, and the rows of E and C that it pulls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .backend import IS_INTERPRETED
from .launch import Call, matrix, options, vector
from .live_segments import BLOCK, LiveSegments
from .sampling import sample_rows
from .schedule import Tiles
from .tail import pull_kernel, tail_share_kernel
from .upstream import Upstream

PARTS = 128
"""Partial sums of the tail's two products, which fill a GPU."""


class Rank1:
    """Of one backward pass."""

    def __init__(self, call: Call, row_max: Tensor, log_sum: Tensor, upstream: Upstream) -> None:
        self.call, self.row_max, self.log_sum, self.upstream = call, row_max, log_sum, upstream
        self.device = call.embeddings.device
        self.n, self.v, self.d = call.shape

    def share(self, live: Tensor, tiles: Tiles, sample: Tensor) -> Tensor:
        """(V,) fp32 how the probability is spread that the rows of `sample` lose in `tiles` that are not `live`
        (tiles, N); 0 where they lose none."""
        call = self.call
        share, lost = (torch.empty(size, device=self.device) for size in (self.v, len(live)))
        tail_share_kernel[(len(live),)](
            matrix(call.embeddings),
            matrix(call.classifier),
            vector(call.bias),
            self.row_max,
            self.log_sum,
            sample,
            live,
            share,
            lost,
            call.cap,
            len(sample),
            self.n,
            self.v,
            self.d,
            TILES=tiles,
            **options(tiles, call.schedule),
        )
        total = lost.sum()
        return torch.where(total > 0, share / total, 0.0)

    def of_words(self, share: Tensor) -> Tensor:
        """(D,) fp32 C^T q: what dE gains for what a row lost."""
        return self._pull(self.call.classifier, share)

    def of_rows(self, lost: Tensor) -> Tensor:
        """(D,) fp32 E^T m: what dC gains for the share of a word."""
        return self._pull(self.call.embeddings, self._given_back(lost))

    def _given_back(self, lost: Tensor) -> Tensor:
        """(N,) fp32: what rows lost, times their upstream gradients. An ignored row, whose may be NaN, lost nothing."""
        dloss, dlse = (0.0 if x is None else x for x in (self.upstream.dloss, self.upstream.dlse))
        return torch.where(lost > 0, lost * (dloss + dlse), 0.0)

    def _pull(self, x: Tensor, weights: Tensor) -> Tensor:
        """(D,) fp32 x^T weights, x (n, D)."""
        rows = triton.cdiv(len(x), PARTS * BLOCK) * BLOCK
        parts = torch.empty((triton.cdiv(len(x), rows), self.d), device=self.device)
        # Columns are alike, and the interpreter's time goes by the number of blocks.
        width = triton.next_power_of_2(self.d) if IS_INTERPRETED else BLOCK
        pull_kernel[(len(parts) * triton.cdiv(self.d, width),)](
            matrix(x),
            weights,
            parts,
            len(x),
            self.d,
            rows,
            BLOCK=BLOCK,
            WIDTH=width,
            enable_fp_fusion=self.call.schedule.fp_fusion,
        )
        return parts.sum(0, dtype=torch.float64).float()


Pair = tuple[Tensor | None, Tensor | None]
NO_TAIL: Pair = (None, None)
"""Of a gradient that drops nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileTail:
    """Of granularity=tile, where both gradients drop the same."""

    tiles: Tensor  # (row blocks, vocabulary tiles) int8, 0 where dropped
    lost: Tensor  # (N,) fp32 probability there
    share: Tensor  # (V,) fp32
    of_e: Pair  # what rows lost, and C^T q
    of_c: Pair  # the share, and E^T m


def tail_of_tiles(rank1: Rank1, segments: LiveSegments, tiles: Tensor, drops: dict[str, bool]) -> TileTail:
    """Before any residual is there: a group's dC is written as soon as it is summed."""
    block = rank1.call.schedule.backward
    live = tiles.repeat_interleave(block.block_n, 0)[: rank1.n].T.contiguous()
    sample = sample_rows(rank1.call.targets, rank1.call.ignore_index)
    lost, share = segments.lost(live), rank1.share(live, block, sample)
    return TileTail(
        tiles=tiles,
        lost=lost,
        share=share,
        of_e=(lost, rank1.of_words(share)) if drops["e"] else NO_TAIL,
        of_c=(share, rank1.of_rows(lost)) if drops["c"] else NO_TAIL,
    )
