"""`SegmentSum`: the error bound of a gradient that is one product of what its owners keep, and of its tail."""

from __future__ import annotations

import torch
from torch import Tensor

from . import stages
from .arithmetic import Arithmetic
from .formats import Format
from .random_error import RandomError
from .residual_error import ResidualError
from .stages import LARGEST_FP32, overflowing
from .tail import Tail
from .terms import Terms


class SegmentSum:
    """Takes in residuals and rows of the other operand, some at a time."""

    def __init__(self, like: Tensor, fmt: Format, arithmetic: Arithmetic, *, by_stage: bool, known_by: str) -> None:
        """`known_by` is the stage that known roundings are put down to."""
        self.fmt, self.arithmetic, self.known_by = fmt, arithmetic, known_by
        self.kappa: Terms | None = None
        self.random_kappa: RandomError | None = None
        self.through = Terms(by_stage)  # what stages before the product contribute
        self.random: RandomError | None = None  # what of that is random
        self.total, self.absolute, self.known, self.alike, self.dropped, self.doubtful, self.oracle = (
            torch.zeros_like(like) for _ in range(7)
        )

    def add(self, g: Tensor, dg: ResidualError, other: Tensor, kept: Tensor, unsure: Tensor, oracle: Tensor) -> None:
        """Residuals g (m, k), in the rows of the result, times rows of `other` (k, D); `kept` and `unsure` (m, k), as
        is the error of float64, relatively."""
        size = other.abs()
        taken = torch.where(kept, g, 0.0)
        self.total = self.total + taken @ other
        self.dropped = self.dropped + (g - taken) @ other
        known = torch.where(kept, dg.known, 0.0)
        if bool(known.any()):
            self.known = self.known + known @ other
        if dg.alike is not None:
            self.alike = self.alike + torch.where(kept, dg.alike, 0.0) @ other
            self.kappa, self.random_kappa = dg.kappa, dg.random_kappa
        for stage, w in dg.own.masked(kept).items():
            self.through.add(stage, w @ size)
        if dg.random is not None:
            passed = dg.random.masked(kept).weighted(size)
            self.random = passed if self.random is None else self.random.plus(passed)
        middle = (taken + known).abs()
        if bool(unsure.any()):
            self.doubtful = self.doubtful + torch.where(unsure, middle + dg.apart().own.total, 0.0) @ size
        self.absolute = self.absolute + middle @ size
        self.oracle = self.oracle + (oracle * g.abs()) @ size

    def bound(
        self, tail: Tail | None, terms: int, steps: int, tiny: Tensor | float, top: Tensor
    ) -> tuple[Terms, RandomError]:
        """The bound of the result by stage, and what of it is random.

        Sums have at most `terms` terms in `steps` steps, underflow at `tiny` and overflow at fp32's largest times
        `top`.
        """
        found, random = Terms(self.through.by_stage).merge(self.through), self.random
        if self.kappa is not None:
            alike = self.alike.abs()
            found.merge(self.kappa.times(alike))
            if random is not None and self.random_kappa is not None:
                random = random.plus(self.random_kappa.times(alike))
        before = found.total
        error = before + self.doubtful
        absolute = self.absolute + error
        size = (self.total + self.known).abs() + error
        rounding = stages.tile_product(absolute, size, terms, self.arithmetic, steps)
        lost = self.arithmetic.underflow(terms, steps) * tiny
        product = overflowing(absolute, rounding.largest + self.oracle + lost, LARGEST_FP32 * top)
        found.add("tile_product", product).add(self.known_by, self.known.abs())
        result, dropped = self.total, self.dropped
        if tail is not None:
            result, dropped = result + tail.product, dropped - tail.product
            found.add("add_tail", tail.added(self.total.abs() + error + product, absolute, tiny, top))
        found.add("is_live", stages.is_live(dropped) + self.doubtful)
        found.add("add_increment", torch.zeros_like(self.total))
        reached = result.abs() + found.total + self.fmt.tiny
        cast = stages.cast_output("fp32", reached, self.fmt)
        found.add("cast_output", overflowing(reached + cast, cast, self.fmt.largest))
        total = found.total
        if random is None:
            return found, RandomError.certain(total)
        rest = (total - before - rounding.largest).clamp(min=0)
        return found, random.plus(rounding).plus(RandomError.certain(rest))._replace(largest=total)
