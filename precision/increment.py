"""`Increment`: what the product of a tile of residuals, or of several in one sum, adds to a gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import stages
from .arithmetic import Arithmetic
from .random_error import RandomError
from .residual_error import ResidualError
from .stages import overflowing


@dataclass(frozen=True, eq=False)
class Increment:
    """One tile's, or several tiles' in one sum: v, computed within `error` of v + `known` + kappa `alike`.

    `known` is what roundings that are known come to. kappa is one number for each row of the sum, the same in all its
    tiles: what a row's max and log sum are wrong by.
    """

    v: Tensor
    error: Tensor
    known: Tensor | None
    alike: Tensor | None
    own: Tensor  # the part of `error` that is the product's, and the oracle's
    oracle: Tensor  # the oracle's alone
    random: RandomError | None  # whose bound `error` is


@dataclass(frozen=True, eq=False)
class Slice:
    """What a tile's increment takes of a `ResidualError`."""

    known: Tensor | None  # None is 0, which needs no product
    alike: Tensor | None
    error: Tensor
    random: RandomError | None

    @classmethod
    def of(cls, error: ResidualError) -> Slice:
        return cls(error.known if bool(error.known.any()) else None, error.alike, error.own.total, error.random)

    def columns(self, span: slice | Tensor) -> Slice:
        return self._each(lambda x: x[:, span])

    def rows(self, span: slice) -> Slice:
        return self._each(lambda x: x[span].T)

    def masked(self, keep: Tensor) -> Slice:
        """Where `keep`, 0 elsewhere."""
        return self._each(lambda x: torch.where(keep, x, 0.0))

    def _each(self, part: Callable[[Tensor], Tensor]) -> Slice:
        known, alike = (None if x is None else part(x) for x in (self.known, self.alike))
        random = None if self.random is None else RandomError(*(part(x) for x in self.random))
        return Slice(known, alike, part(self.error), random)


def increment(
    g: Tensor,
    dg: Slice,
    other: Tensor,
    *,
    tiny: Tensor | float,
    limit: Tensor | float,
    steps: int,
    oracle: Tensor,
    arithmetic: Arithmetic,
) -> Increment:
    """Of a tile of residuals g and rows of the other operand.

    `tiny` is the scale at which products underflow, `limit` where they may overflow, `steps` how many tiles they are
    of; `oracle` (m, 1) is the error of float64, relative to sum |g||C|.
    """
    size, terms = other.abs(), g.shape[1]
    v, error = g @ other, dg.error @ size
    known = None if dg.known is None else dg.known @ other
    middle = g if dg.known is None else g + dg.known
    absolute = middle.abs() @ size
    of_oracle = oracle * absolute
    moved = v if known is None else v + known
    product = stages.tile_product(absolute + error, moved.abs() + error, terms, arithmetic, steps)
    own = product.largest + of_oracle + arithmetic.underflow(terms, steps) * tiny
    largest = (middle.abs() + dg.error).sum(1, keepdim=True) * size.amax(0)
    own = overflowing(largest, own, limit)
    alike = None if dg.alike is None else dg.alike @ other
    random = None
    if dg.random is not None:
        random = dg.random.weighted(size).plus(product.rest_certain(own))
    return Increment(v, error + own, known, alike, own, of_oracle, random)
