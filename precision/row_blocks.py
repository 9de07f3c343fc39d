"""`RowBlocks`: which rows share a block of dE of granularity=segment, whose words are kept for all of them or none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.kernels.similar_rows import PARTS, PIVOTS
from ccelab.reference import Problem


@dataclass(frozen=True, eq=False, slots=True)
class RowBlocks:
    """Blocks of `size` rows: as they are, or in an order (N,) of their own."""

    size: int
    order: Tensor | None = None

    def any(self, x: Tensor) -> Tensor:
        """(row blocks, n) bool of (N, n): whether any row of a block has it."""
        x = self.in_order(x)
        found: Tensor = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % self.size)).unflatten(0, (-1, self.size))
        return found.any(1)

    def of_rows(self, blocks: Tensor, rows: int) -> Tensor:
        """(N, n) of (row blocks, n): what the block of each of so many rows has."""
        return self.in_batch(blocks.repeat_interleave(self.size, 0)[:rows])

    def in_order(self, x: Tensor) -> Tensor:
        """(R, ...) rows in the order of the blocks, those past N where they are."""
        return x if self.order is None else x[self._padded(len(x))]

    def in_batch(self, x: Tensor) -> Tensor:
        """What `in_order` made of it, undone."""
        if self.order is None:
            return x
        back = torch.empty_like(x)
        back[self._padded(len(x))] = x
        return back

    def _padded(self, rows: int) -> Tensor:
        assert self.order is not None
        return torch.cat([self.order, torch.arange(len(self.order), rows, device=self.order.device)])


def likeness(problem: Problem, sample: Tensor) -> Tensor:
    """(N, PIVOTS) float64 how far a row reaches in the direction of each of the rows that others are likened to, which
    are spread evenly over the `sample`; -inf for one that has none."""
    embeddings = problem.embeddings.detach().double()
    pivots = embeddings[sample[:: len(sample) // PIVOTS][:PIVOTS]]
    scores = embeddings @ torch.nn.functional.normalize(pivots, dim=1, eps=0.0).T
    return torch.where(scores.isnan(), -torch.inf, scores)


def parts(kept: Tensor) -> Tensor:
    """(N,) the part of each row: PARTS of as many rows, those that have `kept` (N,) the most segments first."""
    place = torch.empty_like(kept)
    place[torch.sort(kept, descending=True, stable=True).indices] = torch.arange(len(kept), device=kept.device)
    return place * PARTS // max(len(kept), 1)


def similar_rows(problem: Problem, kept: Tensor, sample: Tensor) -> Tensor:
    """(N,) the rows in the order of row_order=similar, where each has `kept` (N,) so many segments."""
    key = parts(kept) * PIVOTS + likeness(problem, sample).argmax(1)
    return torch.sort(torch.where(problem.valid, key, PARTS * PIVOTS), stable=True).indices
