"""`FilteredSum`: the error bound of a gradient sum whose filter leaves out tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from . import stages
from .accumulation import Accumulation
from .terms import Terms


class FilteredSum:
    """Takes in every tile's increment, kept, dropped, or too close to eps to call, and bounds what comes of them."""

    def __init__(self, total: Accumulation, *, is_filtered: bool, oracle_share: float, by_stage: bool) -> None:
        """`oracle_share` is the oracle's own rounding as a share of an increment's error."""
        self.total, self.is_filtered, self.oracle_share = total, is_filtered, oracle_share
        self.increments = Terms(by_stage)  # what the errors of increments contribute; by stage alone
        self._dropped, self._doubtful, self._oracle = (torch.zeros_like(total.sum) for _ in range(3))

    def add(self, v: Tensor, dv: Tensor, own: Tensor, surely: Tensor, maybe: Tensor) -> None:
        """An increment v within dv, of which `own` is no stage's: the oracle's rounding, and underflow. `surely` and
        `maybe`, which broadcast with v, say where its tile is live."""
        taken, unsure = surely | maybe, maybe & ~surely
        self._dropped += torch.where(taken, 0.0, v)
        left_out = torch.where(taken, 0.0, dv * self.oracle_share)
        in_doubt = torch.where(unsure, v.abs(), 0.0)
        self.total.error += left_out
        self.total.add(torch.where(taken, v, 0.0), torch.where(taken, dv, 0.0) + in_doubt)
        self._oracle += left_out + torch.where(taken, own, 0.0)
        self._doubtful += in_doubt

    def terms(self) -> Terms:
        """After all increments: the bound of the result."""
        by_stage = self.increments.by_stage
        increments = Terms(by_stage).merge(self.increments).add("tile_product", self._oracle)
        if self.is_filtered:
            increments.add("is_live", self._doubtful)
        terms = self.total.terms(by_stage, increments)
        return terms.add("is_live", stages.is_live(self._dropped)) if self.is_filtered else terms
