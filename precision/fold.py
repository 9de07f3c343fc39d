"""`Fold`: the error of the sum of exponentials as the forward pass folds it, tile by tile in each split."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.kernels import Schedule

from . import stages
from .arithmetic import Arithmetic
from .formats import U


class Fold:
    """Takes in exact logits in the vocabulary's order, whole tiles at a time (but the last)."""

    def __init__(self, lse: Tensor, vocabulary: int, schedule: Schedule, arithmetic: Arithmetic) -> None:
        """`lse` (N, 1) is the exact one."""
        self.lse, self.block, self.arithmetic = lse, schedule.forward.block_v, arithmetic
        tiles = -(-vocabulary // self.block)
        self.per_split = schedule.tiles_per_split(len(lse), vocabulary)
        self.splits = -(-tiles // self.per_split)
        zero = torch.zeros_like(lse)
        self._tile, self._error, self._widest, self._most = 0, zero, zero, zero
        self._start_split()

    def _start_split(self) -> None:
        zero = torch.zeros_like(self.lse)
        self._top, self._sum, self._rescalings = torch.full_like(self.lse, -torch.inf), zero, zero

    @property
    def error(self) -> Tensor:
        """(N, 1), relative to the row's sum: along the partial sums, or where logits are off by too much for these to
        be known by the number of roundings."""
        counted = U * (self.block + 5 * self._most + self.per_split)
        return torch.fmin(self._error, counted)

    def add(self, logits: Tensor, error: Tensor) -> None:
        """More columns, whose logits are computed within `error`."""
        for z, dz in zip(logits.split(self.block, 1), error.split(self.block, 1), strict=True):
            if self._tile % self.per_split == 0:
                self._start_split()
            self._tile += 1
            self._add_tile(z, dz.amax(1, keepdim=True))

    def _add_tile(self, z: Tensor, error: Tensor) -> None:
        self._widest = torch.maximum(self._widest, error)
        highest, before = z.amax(1, keepdim=True), self._top
        self._top = torch.maximum(before, highest)
        shift = torch.where(self._top.isfinite(), self._top, 0.0)
        kept = self._sum * torch.exp(before - shift)
        terms = torch.exp(torch.nn.functional.pad(z, (0, self.block - z.shape[1]), value=-torch.inf) - shift)
        margin = torch.expm1(2 * self._widest) + 2.0**-16  # of a logit and of the maximum, and of a few roundings
        # It may be computed as larger where it is smaller by less than both their errors.
        is_rescaled = (highest > before - 2 * self._widest) & (before > -torch.inf)
        self._rescalings = self._rescalings + is_rescaled.double()
        self._most = torch.maximum(self._most, self._rescalings)
        folded = stages.fold_tile(terms, margin, kept, is_rescaled, self.arithmetic)
        self._error = self._error + folded * torch.exp(shift - self.lse)
        self._sum = kept + terms.sum(1, keepdim=True)
