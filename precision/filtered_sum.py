"""`FilteredSum`: the error bound of a gradient sum whose filter leaves out tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import stages
from .accumulation import Accumulation
from .increment import Increment
from .random_error import RandomError
from .tail import Tail
from .terms import Terms


@dataclass(frozen=True, eq=False)
class Filtered:
    """What a sum takes in at once, and what of its tiles it leaves out."""

    taken: Increment
    dropped: Tensor
    doubtful: Tensor  # the size of what is too close to eps to call
    doubtful_alike: Tensor | None  # and of its `alike`
    left_out: Tensor  # float64's error in what is dropped

    @classmethod
    def of_tile(cls, tile: Increment, surely: Tensor, maybe: Tensor) -> Filtered:
        """A whole increment, where the masks, which broadcast with v, say that it is live."""
        taken, unsure = surely | maybe, maybe & ~surely

        def where(mask: Tensor, x: Tensor | None) -> Tensor | None:
            return None if x is None else torch.where(mask, x, 0.0)

        kept = replace(
            tile,
            v=torch.where(taken, tile.v, 0.0),
            error=torch.where(taken, tile.error, 0.0),
            known=where(taken, tile.known),
            alike=where(taken, tile.alike),
            own=torch.where(taken, tile.own, 0.0),
            random=None if tile.random is None else tile.random.masked(taken),
        )
        middle = tile.v if tile.known is None else tile.v + tile.known
        return cls(
            kept,
            dropped=torch.where(taken, 0.0, tile.v),
            doubtful=torch.where(unsure, middle.abs(), 0.0),
            doubtful_alike=where(unsure, None if tile.alike is None else tile.alike.abs()),
            left_out=torch.where(taken, 0.0, tile.oracle),
        )


class FilteredSum:
    """Takes in every increment, with what is kept, dropped, or too close to eps to call, and bounds what comes of
    them."""

    def __init__(self, total: Accumulation, *, is_filtered: bool, kappa: Terms | None, known_by: str) -> None:
        """`kappa` (N, 1), by stage, bounds the number of that name; `known_by` is the stage that known roundings are
        put down to."""
        self.total, self.is_filtered, self.kappa, self.known_by = total, is_filtered, kappa, known_by
        self._largest_kappa = None if kappa is None else kappa.total
        self._increments: RandomError | None = RandomError.certain(torch.zeros_like(total.sum))
        self._dropped, self._doubtful, self._own, self._known, self._alike = (
            torch.zeros_like(total.sum) for _ in range(5)
        )

    def add(self, part: Filtered) -> None:
        """One more increment."""
        taken, in_doubt = part.taken, part.doubtful
        middle = taken.v
        if taken.known is not None:
            middle = middle + taken.known
            self._known += taken.known
        alike: Tensor | float = 0.0
        common: Tensor | float = 0.0
        if taken.alike is not None and self._largest_kappa is not None:
            self._alike += taken.alike
            alike, common = self._largest_kappa * taken.alike.abs(), self._largest_kappa * self._alike.abs()
            if part.doubtful_alike is not None:
                in_doubt = in_doubt + self._largest_kappa * part.doubtful_alike
        self._dropped += part.dropped
        self._doubtful += in_doubt
        self._own += part.left_out + taken.own
        self.total.error += part.left_out
        if taken.random is None or self._increments is None:
            self._increments = None
        else:
            certain = RandomError.certain(part.left_out + in_doubt)
            self._increments = self._increments.plus(taken.random).plus(certain)
        self.total.add(middle, taken.error + in_doubt, alike, common)

    def terms(self, increments: Terms, tail: Tail | None) -> Terms:
        """The bound of the result after all increments, given what stages before the product contribute."""
        increments = Terms(increments.by_stage).merge(increments).add("tile_product", self._own)
        if self.kappa is not None:
            increments.merge(self.kappa.times(self._alike.abs()))
        if self.is_filtered:
            increments.add("is_live", self._doubtful)
        terms = self.total.terms(increments.by_stage, increments, tail).add(self.known_by, self._known.abs())
        return terms.add("is_live", stages.is_live(self._missing(tail))) if self.is_filtered else terms

    def _missing(self, tail: Tail | None) -> Tensor:
        """What is dropped and not given back."""
        return self._dropped if tail is None else self._dropped - tail.product

    def random(self, largest: Tensor, kappa: RandomError | None, tail: Tail | None) -> RandomError:
        """What of the bound `largest` of the result is random; `kappa` (N, 1) is what is of the number of that name."""
        if self._increments is None:
            return RandomError.certain(largest)
        found = self._increments.plus(self.total.added)
        if kappa is not None:
            found = found.plus(kappa.times(self._alike.abs()))
        certain = self._known.abs() + self._missing(tail).abs()
        certain = certain + self.total.tail_added(tail) + self.total.output_cast(tail)
        return found.plus(RandomError.certain(certain))._replace(largest=largest)
