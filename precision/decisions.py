"""`Decisions`: what granularity=segment keeps, and what its tail gives back, as a call says or as the oracle would."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Statistics, Variant
from ccelab.kernels.sampling import sample_rows
from ccelab.reference import Problem, formula
from ccelab.reference.double import ResidualChunk, Stream
from ccelab.reference.formula import FLOAT64

from .row_blocks import RowBlocks, similar_rows


@dataclass(frozen=True, eq=False, kw_only=True)
class Decisions:
    """Segments that are kept, the probability that every row loses without the others, and the tail's vector."""

    rows: Tensor  # (segments, N) bool: which dC keeps
    words: Tensor  # (row blocks, V) bool: which dE keeps
    blocks: RowBlocks
    lost_e: Tensor  # (N,) float64
    lost_c: Tensor  # (N,) float64
    share: Tensor | None  # (V,) float64; None without a tail
    is_own: bool  # the oracle's, and not a call's

    def given_back(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """(N, 1) float64 each: what dE's tail and dC's give back to rows, in residuals."""
        return in_residuals(self.lost_e, stream), in_residuals(self.lost_c, stream)


def in_residuals(lost: Tensor, stream: Stream) -> Tensor:
    """(N, 1) what `lost` (N,), a probability, comes to in residuals."""
    lost = lost[:, None]
    return torch.where((lost > 0) & stream.valid, lost * (stream.d_loss + stream.d_lse), 0.0)


def decisions(problem: Problem, variant: Variant, schedule: Schedule, taken: Statistics | None) -> Decisions:
    """Those that a call took, where its statistics tell of both gradients, and else the oracle's own."""
    if taken is None or taken.segments_e is None or taken.segments_c is None:
        return _own(problem, variant, schedule)
    assert taken.filtered_mass_e is not None
    assert taken.filtered_mass_c is not None
    return Decisions(
        rows=taken.segments_c != 0,
        words=taken.segments_e != 0,
        blocks=RowBlocks(schedule.row_segments.block_n, taken.row_order),
        lost_e=taken.filtered_mass_e.double(),
        lost_c=taken.filtered_mass_c.double(),
        share=None if taken.tail_share is None else taken.tail_share.double(),
        is_own=False,
    )


def by_tile(x: Tensor, block_v: int, fill: float = 0.0) -> Tensor:
    """(N, tiles, BLOCK_V) of (N, n), `fill` beyond."""
    tiles: Tensor = torch.nn.functional.pad(x, (0, -x.shape[1] % block_v), value=fill).unflatten(1, (-1, block_v))
    return tiles


def _own(problem: Problem, variant: Variant, schedule: Schedule) -> Decisions:
    tiles = schedule.row_segments
    stream = Stream(problem, max(1, 2**26 // max(problem.shape[0], 1) // tiles.block_v) * tiles.block_v)
    spacing = torch.finfo(problem.embeddings.dtype).eps
    eps, eps_e = variant.threshold(spacing), variant.threshold_e(spacing)
    size = torch.where(stream.valid, stream.d_loss.abs() + stream.d_lse.abs(), 0.0)
    sample = sample_rows(problem.targets, problem.ignore_index)

    def live_rows(part: ResidualChunk) -> Tensor:
        """(N, tiles) bool."""
        mass = by_tile(part.softmax, tiles.block_v).sum(2)
        mass = torch.where(by_tile(part.columns == stream.targets, tiles.block_v).any(2), 1.0, mass)
        return ~(mass <= eps) & (size > 0)

    order = None
    if variant.row_order == "similar" and len(size) > tiles.block_n:
        counts = [live_rows(part).sum(1) for part in stream.residuals(stream.rows())]
        order = similar_rows(problem, torch.stack(counts).sum(0), sample)
    row_blocks = RowBlocks(tiles.block_n, order)
    lost_e, lost_c = torch.zeros_like(size), torch.zeros_like(size)
    rows, words, share = [], [], []
    for part in stream.residuals(stream.rows()):
        is_target = part.columns == stream.targets
        live = live_rows(part)
        kept = live.repeat_interleave(tiles.block_v, 1)[:, : len(part.columns)]
        entries = (~(part.residual.abs() <= eps_e * size) | (is_target & (eps_e < 1))) & (size > 0)
        blocks = row_blocks.any(entries & kept)
        of_rows = row_blocks.of_rows(blocks, len(size))
        lost_c += torch.where(stream.valid & ~kept, part.softmax, 0.0).sum(1, keepdim=True)
        lost_e += torch.where(stream.valid & ~of_rows, part.softmax, 0.0).sum(1, keepdim=True)
        slope = formula.cap_derivative(FLOAT64, part.raw, problem.softcap)
        share.append(torch.where(kept, 0.0, part.softmax * slope)[sample].sum(0))
        rows.append(live.T)
        words.append(blocks)
    total = lost_c[sample].sum()
    return Decisions(
        rows=torch.cat(rows),
        words=torch.cat(words, 1),
        blocks=row_blocks,
        lost_e=lost_e[:, 0],
        lost_c=lost_c[:, 0],
        share=torch.cat(share) / torch.where(total > 0, total, 1.0) if variant.tail == "rank1" else None,
        is_own=True,
    )
