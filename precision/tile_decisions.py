"""`TileDecisions`: which tiles a filter with a tail keeps, and what it gives back, as a call says or the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Statistics, Variant
from ccelab.kernels.sampling import sample_rows
from ccelab.reference import Problem, formula
from ccelab.reference.double import Stream
from ccelab.reference.formula import FLOAT64

from .decisions import by_tile, in_residuals
from .row_blocks import RowBlocks


@dataclass(frozen=True, eq=False, kw_only=True)
class TileDecisions:
    """The same for both gradients, where they are filtered."""

    tiles: Tensor  # (row blocks, vocabulary tiles) bool: which are kept
    lost: Tensor  # (N,) float64 probability in the others
    share: Tensor  # (V,) float64
    is_own: bool  # the oracle's, and not a call's

    def given_back(self, stream: Stream) -> Tensor:
        """(N, 1) float64: what the tail gives back to rows, in residuals."""
        return in_residuals(self.lost, stream)


def tile_decisions(problem: Problem, variant: Variant, schedule: Schedule, taken: Statistics | None) -> TileDecisions:
    """Those that a call took, where its statistics tell, and else the oracle's own."""
    if taken is None or taken.tiles is None or taken.tail_share is None:
        return _own(problem, variant, schedule)
    lost = [taken.filtered_mass_e if variant.filter_e else None, taken.filtered_mass_c if variant.filter_c else None]
    found = next(x for x in lost if x is not None)
    return TileDecisions(tiles=taken.tiles != 0, lost=found.double(), share=taken.tail_share.double(), is_own=False)


def _own(problem: Problem, variant: Variant, schedule: Schedule) -> TileDecisions:
    tiles = schedule.backward
    stream = Stream(problem, max(1, 2**26 // max(problem.shape[0], 1) // tiles.block_v) * tiles.block_v)
    eps = variant.threshold(torch.finfo(problem.embeddings.dtype).eps)
    size = torch.where(stream.valid, stream.d_loss.abs() + stream.d_lse.abs(), 0.0)
    sample = sample_rows(problem.targets, problem.ignore_index)
    lost, row_blocks = torch.zeros_like(size), RowBlocks(tiles.block_n)
    found, share = [], []
    for part in stream.residuals(stream.rows()):
        live = (~(part.residual.abs() <= eps * size) | (part.columns == stream.targets)) & (size != 0)
        blocks = row_blocks.any(by_tile(live, tiles.block_v).any(2))
        kept = row_blocks.of_rows(blocks, len(size)).repeat_interleave(tiles.block_v, 1)[:, : len(part.columns)]
        lost += torch.where(stream.valid & ~kept, part.softmax, 0.0).sum(1, keepdim=True)
        slope = formula.cap_derivative(FLOAT64, part.raw, problem.softcap)
        share.append(torch.where(kept, 0.0, part.softmax * slope)[sample].sum(0))
        found.append(blocks)
    total = lost[sample].sum()
    return TileDecisions(
        tiles=torch.cat(found, 1),
        lost=lost[:, 0],
        share=torch.cat(share) / torch.where(total > 0, total, 1.0),
        is_own=True,
    )
