"""`RecordError`: what becomes of a segment's probability in the forward pass's record, and on the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.kernels import Schedule
from ccelab.reference.formula import Rows

from .arithmetic import Arithmetic
from .decisions import by_tile
from .formats import Format, U
from .logit_error import LogitError

FP16 = Format.of(torch.float16)


class RecordError:
    """Takes in the vocabulary in order, whole tiles of the forward pass at a time."""

    def __init__(self, rows: Rows, schedule: Schedule, shape: tuple[int, int, int], arithmetic: Arithmetic) -> None:
        self.rows, self.segment, self.arithmetic = rows, schedule.segment_columns, arithmetic
        self.block = schedule.forward.block_v
        self.per_split = schedule.cut(*shape[:2]).per_split
        self.log_s = torch.log1p(rows.rest)
        self._tile = 0
        self._base = self._off = torch.zeros_like(rows.maximum)

    def take(self, logits: Tensor, error: LogitError, mass: Tensor) -> Tensor:
        """(N, segments), relative: the sum over a segment, its logarithm, what is subtracted of that and added again,
        and the rounding to fp16 of the rest, which may count twice: it is made up for where a segment is judged.

        `logits` (N, n) and their error, `mass` (N, segments) the exact probabilities."""
        log_mass = torch.where(mass > 0, torch.log(mass), 0.0)
        exponent = log_mass.abs() + self.log_s
        # 4 U of the logarithm, or of 1, are a GPU's lg2.approx.
        roundings = U * (self.segment + 16 + 8 * (self.rows.maximum.abs() + exponent))
        roundings = roundings + self.arithmetic.exponential(exponent, torch.zeros_like(exponent)).largest
        base, off = self._bases(logits, error)
        distance = (self.rows.maximum + self.log_s + log_mass - base).abs() + off + roundings + U * base.abs()
        distance = torch.where(mass > 0, distance, 0.0)
        return torch.expm1(roundings + 2 * (1 + FP16.u) * (FP16.u * distance + FP16.tiny / 2))

    def _bases(self, logits: Tensor, error: LogitError) -> tuple[Tensor, Tensor]:
        """(N, segments) maxima after the first tiles of splits, and how far a difference to them may be off."""
        tops = by_tile(torch.where(logits.isnan(), -torch.inf, logits), self.block, fill=-torch.inf).amax(2)
        tops, off = torch.where(tops.isinf(), 0.0, tops), 2 * by_tile(error.capped.total, self.block).amax(2)
        bases, offs = [], []
        for tile in range(tops.shape[1]):
            if (self._tile + tile) % self.per_split == 0:
                self._base, self._off = tops[:, tile : tile + 1], off[:, tile : tile + 1]
            bases.append(self._base)
            offs.append(self._off + off[:, tile : tile + 1])
        self._tile += tops.shape[1]
        segments = -(-logits.shape[1] // self.segment)
        return tuple(  # type: ignore[return-value]
            torch.cat(x, 1).repeat_interleave(self.block // self.segment, 1)[:, :segments] for x in (bases, offs)
        )
