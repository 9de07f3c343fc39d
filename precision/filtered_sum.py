"""`FilteredSum`: the error bound of a gradient sum whose filter leaves out tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from . import stages
from .accumulation import Accumulation
from .increment import Increment
from .random_error import RandomError
from .terms import Terms


class FilteredSum:
    """Takes in every tile's increment, kept, dropped, or too close to eps to call, and bounds what comes of them."""

    def __init__(self, total: Accumulation, *, is_filtered: bool, kappa: Terms | None, known_by: str) -> None:
        """`kappa` (N, 1), by stage, bounds the number of that name; `known_by` is the stage that known roundings are
        put down to."""
        self.total, self.is_filtered, self.kappa, self.known_by = total, is_filtered, kappa, known_by
        self._largest_kappa = None if kappa is None else kappa.total
        self._increments: RandomError | None = RandomError.certain(torch.zeros_like(total.sum))
        self._dropped, self._doubtful, self._own, self._known, self._alike = (
            torch.zeros_like(total.sum) for _ in range(5)
        )

    def add(self, tile: Increment, surely: Tensor, maybe: Tensor) -> None:
        """`surely` and `maybe`, which broadcast with v, say where the tile is live."""
        taken, unsure = surely | maybe, maybe & ~surely
        known = torch.where(taken, 0.0 if tile.known is None else tile.known, 0.0)
        middle = torch.where(taken, tile.v, 0.0) + known
        alike: Tensor | float = 0.0
        common: Tensor | float = 0.0
        if tile.alike is not None and self._largest_kappa is not None:
            added = torch.where(taken, tile.alike, 0.0)
            self._alike += added
            alike, common = self._largest_kappa * added.abs(), self._largest_kappa * self._alike.abs()
        in_doubt = torch.where(unsure, middle.abs() + alike, 0.0)
        left_out = torch.where(taken, 0.0, tile.oracle)
        self._dropped += torch.where(taken, 0.0, tile.v)
        self._known += known
        self._doubtful += in_doubt
        self._own += left_out + torch.where(taken, tile.own, 0.0)
        self.total.error += left_out
        if tile.random is None or self._increments is None:
            self._increments = None
        else:
            certain = RandomError.certain(left_out + in_doubt)
            self._increments = self._increments.plus(tile.random.masked(taken)).plus(certain)
        self.total.add(middle, torch.where(taken, tile.error, 0.0) + in_doubt, alike, common)

    def terms(self, increments: Terms) -> Terms:
        """The bound of the result after all increments, given what stages before the product contribute."""
        increments = Terms(increments.by_stage).merge(increments).add("tile_product", self._own)
        if self.kappa is not None:
            increments.merge(self.kappa.times(self._alike.abs()))
        if self.is_filtered:
            increments.add("is_live", self._doubtful)
        terms = self.total.terms(increments.by_stage, increments).add(self.known_by, self._known.abs())
        return terms.add("is_live", stages.is_live(self._dropped)) if self.is_filtered else terms

    def random(self, largest: Tensor, kappa: RandomError | None) -> RandomError:
        """What of the bound `largest` of the result is random; `kappa` (N, 1) is what is of the number of that name."""
        if self._increments is None:
            return RandomError.certain(largest)
        found = self._increments.plus(self.total.added)
        if kappa is not None:
            found = found.plus(kappa.times(self._alike.abs()))
        certain = self._known.abs() + self._dropped.abs() + self.total.output_cast()
        return found.plus(RandomError.certain(certain))._replace(largest=largest)
