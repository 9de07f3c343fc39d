"""`Fold`: the error of the sum of exponentials as the forward pass folds it, tile by tile in each split."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.kernels import Schedule

from . import stages
from .arithmetic import Arithmetic
from .coincidences import coincidences
from .difference import difference_error
from .enclosure import Enclosure
from .formats import U
from .random_error import RandomError


class Fold:
    """Takes in exact logits in the vocabulary's order, whole tiles at a time (but the last).

    All errors are (N, 1) and relative to the row's sum. `known` is what roundings that are known come to; the doubles
    are how many classes have the same exponential as one, on average over the softmax.
    """

    def __init__(self, lse: Tensor, vocabulary: int, schedule: Schedule, arithmetic: Arithmetic) -> None:
        """`lse` (N, 1) is the exact one."""
        self.lse, self.vocabulary, self.block, self.arithmetic = lse, vocabulary, schedule.forward.block_v, arithmetic
        self.segment = schedule.segment_columns
        cut = schedule.cut(len(lse), vocabulary)
        self.per_split, self.splits = cut.per_split, cut.splits
        zero = torch.zeros_like(lse)
        self._tile, self._widest, self._most, self.doubles, self.known = 0, zero, zero, zero, zero
        self.exponentials = self._error = RandomError.certain(zero)
        self._complete: list[tuple[Tensor, Enclosure, Tensor]] = []
        self._start_split()

    def _start_split(self) -> None:
        none, zero = torch.full_like(self.lse, -torch.inf), torch.zeros_like(self.lse)
        self._top, self._computed, self._sum, self._rescalings = none, Enclosure(none, none), zero, zero

    @property
    def error(self) -> RandomError:
        """Of the sums: along the partial sums, or where logits are off by too much for these to be known by the number
        of roundings. Where most classes have a double the sums of different tiles and lanes are the same sum."""
        counted = U * (self.block + 5 * self._most + self.per_split)
        return self._error.capped(counted).certain_where(self.doubles >= 2)

    def joined(self, maximum: Tensor, top: Enclosure, log_s: Tensor) -> tuple[RandomError, RandomError]:
        """What joining the splits adds to that, and the error of the logarithm."""
        rescaled, sums = [], []
        splits = [*self._complete, (self._top, self._computed, self._sum)]
        for place, (highest, computed, total) in enumerate(splits):
            rivals = [other for k, (other, _, _) in enumerate(splits) if k != place]
            rival = torch.stack(rivals).amax(0) if rivals else torch.full_like(maximum, -torch.inf)
            factor, known = self._rescaled(highest, computed, rival, maximum, top)
            share = torch.where(total > 0, total * torch.exp(highest - maximum), 0.0)
            self.known = self.known + known * share * torch.exp(-log_s)
            rescaled.append(factor)
            sums.append(share)
        joined, logarithm = stages.join_splits(sums, self._margin, rescaled, log_s, self.arithmetic)
        worst = sum(factor.largest.nan_to_num(posinf=0.0) for factor in rescaled)
        return joined.capped(len(sums) * U + worst).certain_where(self.doubles >= 2), logarithm

    @property
    def _margin(self) -> Tensor:
        """Of exponentials: of a logit and of the maximum, and of a few roundings."""
        return torch.expm1(2 * self._widest) + 2.0**-16

    def _rescaled(
        self, before: Tensor, computed: Enclosure, rival: Tensor, top: Tensor, computed_top: Enclosure
    ) -> tuple[RandomError, Tensor]:
        """Of the factor exp(before - top) and the product with it, relatively, and what is known of it. `top` is the
        larger of `before` and its `rival`; exp(0) is 1."""
        distance = torch.where(before > -torch.inf, top - before, 0.0)
        off = 2 * self._widest
        is_known = self.arithmetic.rounds_to_nearest
        difference = difference_error(computed, computed_top, distance, off, is_known=is_known)
        # The rival may be computed as larger where it is smaller by less than both their errors.
        is_1 = (rival <= before - off) | (before == -torch.inf) | (is_known & (computed.low == computed_top.high))
        exponential = stages.exponentials(difference.radius, distance + off, 2 * off, is_1, self.arithmetic)
        factor = exponential.plus(RandomError.rounding(U + 0 * distance)).masked(~is_1)
        return factor, torch.where(is_1, 0.0, difference.middle + self.arithmetic.skew(distance))

    def add(self, logits: Tensor, error: Tensor, computed: Enclosure) -> None:
        """More columns, whose logits are `computed` within `error`."""
        alike = torch.ones_like(logits)
        if self.arithmetic.rounds_to_nearest:
            alike = coincidences(logits - self.lse, -(-self.vocabulary // logits.shape[1]))
        self.doubles = self.doubles + (torch.exp(logits - self.lse) * alike).sum(1, keepdim=True)
        each = (x.split(self.block, 1) for x in (logits, error, *computed, alike))
        for z, dz, low, high, same in zip(*each, strict=True):
            if self._tile % self.per_split == 0 and self._tile > 0:
                self._complete.append((self._top, self._computed, self._sum))
                self._start_split()
            self._tile += 1
            self._add_tile(z, dz.amax(1, keepdim=True), Enclosure(low, high), same)

    def _add_tile(self, z: Tensor, error: Tensor, computed: Enclosure, alike: Tensor) -> None:
        self._widest = torch.maximum(self._widest, error)
        before, computed_before = self._top, self._computed
        highest = z.amax(1, keepdim=True)
        self._top = torch.maximum(before, highest)
        tops = (torch.maximum(x, y.amax(1, keepdim=True)) for x, y in zip(computed_before, computed, strict=True))
        self._computed = Enclosure(*tops)
        shift = torch.where(self._top.isfinite(), self._top, 0.0)
        self._add_exponentials(z, shift, computed, alike)
        kept = self._sum * torch.exp(before - shift)
        terms = torch.exp(torch.nn.functional.pad(z, (0, self.block - z.shape[1]), value=-torch.inf) - shift)
        rescaled, known = self._rescaled(before, computed_before, highest, self._top, self._computed)
        self._rescalings = self._rescalings + (rescaled.largest > 0).double()
        self._most = torch.maximum(self._most, self._rescalings)
        weight = torch.exp(shift - self.lse)
        self.known = self.known + torch.where(kept > 0, known * kept * weight, 0.0)
        folded = stages.fold_tile(terms, self._margin, self.segment, kept, rescaled, self.arithmetic)
        self._error = self._error.plus(folded.times(weight))
        self._sum = kept + terms.sum(1, keepdim=True)

    def _add_exponentials(self, z: Tensor, shift: Tensor, computed: Enclosure, alike: Tensor) -> None:
        softmax = torch.exp(z - self.lse)
        distance = torch.where(softmax > 0, shift - z, 0.0)
        off, is_known = 2 * self._widest, self.arithmetic.rounds_to_nearest
        difference = difference_error(computed, self._computed, distance, off, is_known=is_known)
        is_1 = is_known & (computed.low == self._computed.high)
        error = stages.exponentials(difference.radius, distance + off, 2 * off, is_1, self.arithmetic)
        self.exponentials = self.exponentials.plus(error.times(softmax).coinciding(alike).sum(1))
        skew = torch.where(is_1, 0.0, self.arithmetic.skew(distance))
        known = torch.where(softmax > 0, softmax * (difference.middle + skew), 0.0)
        self.known = self.known + known.sum(1, keepdim=True)
