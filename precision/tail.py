"""`Tail`: what is given back to a gradient, as its budgets see it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from . import stages
from .formats import FP32
from .stages import LARGEST_FP32, overflowing


@dataclass(frozen=True, eq=False)
class Tail:
    """m q, one a column, the other a row."""

    m: Tensor
    q: Tensor
    size: Tensor  # of q, or of m where that is the sum, before anything cancelled
    count: int  # what that is a sum of

    @property
    def product(self) -> Tensor:
        return self.m * self.q

    def added(self, size: Tensor, absolute: Tensor, tiny: Tensor | float, top: Tensor | float) -> Tensor:
        """The bound of what adding it rounds, to sums of `size` whose terms come to `absolute`; they underflow at
        `tiny` and overflow at fp32's largest times `top`."""
        given_back = self.m.abs() * self.size
        rounding = stages.add_tail(size, given_back, self.count) + FP32.tiny * tiny
        return overflowing(absolute + given_back, rounding, LARGEST_FP32 * top)
