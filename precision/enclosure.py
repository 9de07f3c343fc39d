"""`Enclosure`: what is known of a number that a kernel rounds.

Rounding to nearest is monotone, so that a number of which two bounds are known is rounded to one between the rounded
bounds. Where those agree, the rounding error is no longer bounded but known, and with it its sign: n such errors add up
to what they come to, and not to n times the largest. Source: Neumaier, "Interval Methods for Systems of Equations",
1990, 1.2; Higham, ASNA, 2.2 (rounding is monotone).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Enclosure(NamedTuple):
    """Two bounds, in float64."""

    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, middle: Tensor, error: Tensor | float) -> Enclosure:
        return cls(middle - error, middle + error)

    def rounded(self, dtype: torch.dtype = torch.float32) -> Enclosure:
        """After a rounding to `dtype`. What reaches a format of 16 bits is an fp32 number, and so torch may go through
        fp32 too: one monotone function after another."""
        return Enclosure(self.low.to(dtype).double(), self.high.to(dtype).double())

    def plus(self, other: Enclosure) -> Enclosure:
        """Their sum, rounded to fp32. float64 rounds it first, innocuously: 53 >= 2 * 24 + 2 digits (Figueroa)."""
        return Enclosure(self.low + other.low, self.high + other.high).rounded()

    def minus(self, other: Enclosure) -> Enclosure:
        """Their difference, not rounded."""
        return Enclosure(self.low - other.high, self.high - other.low)

    def error(self, exact: Tensor) -> Enclosure:
        """Of the enclosed number, taken for `exact`."""
        return Enclosure(self.low - exact, self.high - exact)

    @property
    def largest(self) -> Tensor:
        """The largest size; inf where nothing is known."""
        return torch.maximum(self.low.abs(), self.high.abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)

    @property
    def middle(self) -> Tensor:
        return self.low / 2 + self.high / 2

    @property
    def radius(self) -> Tensor:
        return self.high / 2 - self.low / 2
